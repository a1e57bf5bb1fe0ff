"""The annotation page and its server: people answer the questions of a ledger in a browser."""
