"""Fixtures of tests that train."""

from tests.support.run_fixtures import _cache, _no_figure, config

__all__ = ["_cache", "_no_figure", "config"]
