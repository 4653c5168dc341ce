"""Versions of HAProxy that the end-to-end tests run."""

import os
from pathlib import Path

CACHE = Path(os.environ.get("SPOAKIT_CACHE", Path(__file__).parents[2] / ".cache"))
REQUIRED = "2.6"
# What differs between them is the protocol's and HAProxy's, and not that of the uncompiled form.
IS_PURE = os.environ.get("SPOAKIT_EXPECT") == "pure"
VERSIONS = (REQUIRED,) if IS_PURE else (REQUIRED, "2.8", "3.0", "3.2", "3.4")
# These are between two others in age and behaviour, and run what depends on HAProxy most, unless
# all is asked for (make test-all).
PARTIAL = frozenset() if "SPOAKIT_ALL_VERSIONS" in os.environ else frozenset({"2.8", "3.0"})
OF_PARTIAL = frozenset(
    {"test_agents", "test_examples", "test_lifecycle", "test_mirror", "test_tls", "test_versions"}
)
