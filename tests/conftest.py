"""Shared by all tests: quiet logs, a cache of their own, no network, and small models."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest

from tfkd import cpu

cpu.use_onednn()  # as the programs do, so that what runs in a test and what runs in a process of its own are the same


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory):
    """Keeps what tests cache out of the user's cache."""
    os.environ["TFKD_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def no_pictures(monkeypatch):
    """Leaves a report's pictures out where a test is about the words around them: they are what takes the time."""
    monkeypatch.setattr("tfkd.report_plots.picture", lambda *arguments, **names: "<svg></svg>")
