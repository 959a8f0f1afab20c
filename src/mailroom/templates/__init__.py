"""Templates of mails: their files, checks, rendering, and copies in SES; begin at ``sources``."""
