"""``junit.xml`` for CI systems: a case for each gate, each parity check and an early end."""

import re
from typing import Any
from xml.etree import ElementTree

from slmc.report import numbers
from slmc.report.terminal import gate_text, point_cells, point_headings
from slmc.report.view import Judged, View

CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")


def suites(view: View) -> str:
    """The verdicts of a run as JUnit XML."""
    cases = [_gate(one) for one in view.judged]
    cases += [_parity(step_id, report) for step_id, report in view.parity.items()]
    cases += [_ended(*view.ended)] if view.ended is not None else []
    failed = sum(case.find("failure") is not None for case in cases)
    skipped = sum(case.find("skipped") is not None for case in cases)
    counts = {
        "tests": str(len(cases)),
        "failures": str(failed),
        "errors": "0",
        "skipped": str(skipped),
    }
    root = ElementTree.Element("testsuites", {"name": "slmc", **counts})
    suite = ElementTree.SubElement(root, "testsuite", {"name": _clean(view.name), **counts})
    suite.extend(cases)
    points = [_point(view, point_cells(point)) for point in view.points]
    if view.advice or points:
        ElementTree.SubElement(suite, "system-out").text = _clean("\n".join(view.advice + points))
    ElementTree.indent(root)
    return (
        '<?xml version="1.0" encoding="utf-8"?>\n'
        + ElementTree.tostring(root, encoding="unicode")
        + "\n"
    )


def _point(view: View, shown: list[str]) -> str:
    """A row of the table of repeated steps, in a line."""
    named = zip(point_headings(view.points, view.select_by)[1:], shown[1:], strict=True)
    values = (f"{heading} {cell}" for heading, cell in named if cell != numbers.NONE)
    return f"{shown[0]}: {'; '.join(values)}"


def _gate(one: Judged) -> ElementTree.Element:
    verdict = one.verdict
    against = f" against {verdict.baseline}" if verdict.baseline else ""
    name = f"{gate_text(verdict.gate)}{against}"
    case = _case(f"gates.{verdict.on}", name)
    sentence = _clean(verdict.sentence)
    if verdict.failed and one.binding:
        attributes = {"type": verdict.outcome, "message": sentence}
        ElementTree.SubElement(case, "failure", attributes).text = sentence
    elif verdict.failed:
        ElementTree.SubElement(case, "skipped", {"message": f"not binding: {sentence}"})
    ElementTree.SubElement(case, "system-out").text = sentence
    return case


def _parity(step_id: str, report: dict[str, Any]) -> ElementTree.Element:
    # An engine that fails parity is not made, so every engine in the report has passed.
    case = _case(f"parity.{step_id}", "the engine ranks like its model")
    text = ", ".join(f"{k} {v}" for k, v in report.items() if isinstance(v, (int, float)))
    ElementTree.SubElement(case, "system-out").text = _clean(text)
    return case


def _ended(step_id: str, why: str) -> ElementTree.Element:
    case = _case(f"steps.{step_id}", "the step passes its own check")
    text = _clean(why)
    ElementTree.SubElement(case, "failure", {"type": "ended", "message": text}).text = text
    return case


def _case(group: str, name: str) -> ElementTree.Element:
    return ElementTree.Element("testcase", {"classname": _clean(group), "name": _clean(name)})


def _clean(text: str) -> str:
    """Text without the characters that XML does not allow."""
    return CONTROL.sub("\ufffd", text)
