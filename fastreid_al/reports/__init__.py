"""Parts of the page that shows a run: crops, curves, clusters, queries, questions, differences.

Each module turns results into what a template prints; `page` renders the templates.
"""
