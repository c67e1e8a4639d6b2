"""Open a page in Chromium."""

from __future__ import annotations

import shutil
import subprocess

import pytest


def browse(path, *options):
    """Open a file in Chromium without network; return its document and the errors it logged."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        pytest.skip("no chromium on this machine; apt-get install chromium")
    profile = path.parent / "profile"
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--disable-dev-shm-usage",
        "--proxy-server=127.0.0.1:9",
        "--enable-logging=stderr",
        "--virtual-time-budget=20000",
    ]
    command = [browser, *flags, f"--user-data-dir={profile}", *options, "--dump-dom", path.as_uri()]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    said = [line for line in ran.stderr.splitlines() if "CONSOLE" in line]
    return ran.stdout, [line for line in said if '"WARN ' not in line]  # messages of Vega about a chart
