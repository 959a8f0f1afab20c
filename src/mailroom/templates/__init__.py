"""The mails: their sources, tags, checks, and their copies in SES."""
