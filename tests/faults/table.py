"""The fault table of `make faults`: of each kind, how many were injected and survived, and what was lost.

A test marked `fault("kind")` counts as one fault that is survived if it passes. One that injects several says so:
`record_property("injected", 200)`; and `record_property("redone", [0, 2, ...])`, the steps that were trained again
after each.
"""

import os
from collections import defaultdict
from dataclasses import dataclass, field
from statistics import mean
from typing import Any

import pytest

LONG = "CLIP_TEST_KILLS" in os.environ
_PROPERTY = "fault"


@dataclass
class Row:
    injected: int = 0
    survived: int = 0
    redone: list[int] = field(default_factory=list)

    def add(self, properties: dict[str, Any], passed: bool) -> None:
        injected = int(properties.get("injected", 1))
        self.injected += injected
        self.survived += injected if passed else 0
        self.redone += properties.get("redone", [])

    @property
    def lost(self) -> str:
        if not self.redone:
            return "nothing"
        return f"0 to {max(self.redone)} steps redone, {mean(self.redone):.1f} in the mean"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "fault(kind): the test injects a fault; counted in the table of make faults")


def pytest_runtest_setup(item: pytest.Item) -> None:
    marker = item.get_closest_marker("fault")
    if marker is not None:
        item.user_properties.append((_PROPERTY, marker.args[0]))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not LONG:
        return
    rows: defaultdict[str, Row] = defaultdict(Row)
    for outcome in ("passed", "failed"):
        for report in terminalreporter.getreports(outcome):
            properties = dict(report.user_properties)
            if report.when == "call" and _PROPERTY in properties:
                rows[properties[_PROPERTY]].add(properties, outcome == "passed")
    terminalreporter.section("faults")
    terminalreporter.write_line("| fault | injected | survived | lost |\n| --- | --- | --- | --- |")
    for kind, row in rows.items():
        terminalreporter.write_line(f"| {kind} | {row.injected:,} | {row.survived:,} | {row.lost} |")
