"""Templates of mails: their files, checks, rendering, and copies in SES. It begins in ``sources``."""
