"""Everything is in pyproject.toml; this file is here for the extension modules that setuptools builds from code."""

from setuptools import setup

setup()
