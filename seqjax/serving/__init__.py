"""A finished run in use: the terminal chat, the web page, export and import."""
