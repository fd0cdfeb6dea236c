"""`report.html`: what a run came to, for people to look at, in one file that needs no network."""
