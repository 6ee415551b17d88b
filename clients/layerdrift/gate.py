"""Policy and report in, verdict out. Pure: no file, no network; undefined numbers never pass unseen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from layerdrift.contract.comparison import Comparison, compare, incomparable
from layerdrift.contract.errors import InputError
from layerdrift.contract.paths import Match, Path, PathError
from layerdrift.contract.policy import Check, Decision, Finding, Policy, Rule, Scalar, Verdict, listed, rule_error
from layerdrift.contract.report import Report
from layerdrift.contract.study_policy import StudyPolicy, StudyVerdict
from layerdrift.contract.study_report import StudyReport
from layerdrift.contract.words import REDACTED, words_of

Document = Report | StudyReport

_RANK: dict[Decision, int] = {"pass": 0, "warn": 1, "fail": 2}
_SHOWN = 3
"""Numbers that a check's detail names."""

MAX_MATCHES = 20_000
"""Numbers that one path of a rule may match."""

MAX_MATCHES_IN_ALL = 100_000
_MAX_PROBLEMS = 20
MAX_FINDINGS = 100
"""Numbers of one check that a verdict lists."""

BASELINE_CHECK = "baseline-comparable"
"""The check that every verdict with a baseline has: whether the two reports were measured alike."""


def evaluate_policy(policy: Policy, report: Report, baseline: Report | None = None) -> Verdict:
    """Whether a report holds a policy.

    Args:
        baseline: the report that rules with `of_baseline` compare with.

    Raises:
        InputError: a report is preliminary, or a rule cannot be judged: its path matches nothing or a number that the
            report does not have, or it needs a baseline that is not there or has other layers. `errors` names them all.
    """
    for one in (report, *([baseline] if baseline else [])):
        one.require_complete()
    if policy.needs_baseline and baseline is None:
        rule = next(rule for rule in policy.rules if rule.of_baseline)
        raise rule_error(
            policy.rules, rule, "needs a baseline: the id of an earlier analysis, as `baseline` of the policy"
        )
    checks: list[Check] = []
    if baseline is not None and policy.needs_baseline:
        checks.append(_comparable(compare(baseline, report)))
    checks += _checked(policy.rules, report, baseline)
    return Verdict(
        analysis_id=report.analysis_id,
        baseline=baseline.analysis_id if baseline else None,
        decision=_worst_of(checks),
        checks=checks,
    )


def evaluate_study_policy(policy: StudyPolicy, report: StudyReport) -> StudyVerdict:
    """Whether the report of a study holds a policy.

    Raises:
        InputError: a rule cannot be judged; `errors` names all of them.
    """
    checks = _checked(policy.rules, report, None)
    return StudyVerdict(study_id=report.study_id, decision=_worst_of(checks), checks=checks)


def _worst_of(checks: Sequence[Check]) -> Decision:
    return max((check.decision for check in checks), key=_RANK.__getitem__)


def _checked(rules: Sequence[Rule], report: Document, baseline: Report | None) -> list[Check]:
    """What becomes of each rule; InputError where one cannot be judged."""
    checks: list[Check] = []
    problems: list[InputError] = []
    matched = 0
    for rule in rules:
        try:
            checks.append(_check(rules, rule, report, baseline))
            matched += checks[-1].matched
        except InputError as error:
            problems.append(error)
        if matched > MAX_MATCHES_IN_ALL:
            detail = f"the policy's rules match more than {MAX_MATCHES_IN_ALL} numbers; name fewer"
            problems.append(rule_error(rules, rule, detail))
            break
        if len(problems) >= _MAX_PROBLEMS:
            break
    if problems:
        raise InputError("; ".join(error.detail for error in problems), [one for e in problems for one in e.errors])
    return checks


judge = evaluate_policy
"""`evaluate_policy`, for scripts that were written for version 0.1."""


def _check(rules: Sequence[Rule], rule: Rule, report: Document, baseline: Report | None) -> Check:
    known_path = _known(rules, rule, report)
    if known_path is not None:
        return _skipped(rule, known_path)
    numbers = _numbers(rules, rule, report)
    if rule.of_baseline and baseline is not None and isinstance(report, Report):
        numbers = [_against(rule, number, report, baseline) for number in numbers]
    undefined = [match for match in numbers if match.value is None]
    if undefined and rule.if_undefined == "error":
        where = ", ".join(match.path for match in undefined[:_SHOWN])
        raise rule_error(
            rules,
            rule,
            f"the report has no {_thing(rule)} at {where}; say what that means with if_undefined: pass, warn or fail",
        )
    known = [match for match in numbers if match.value is not None]
    broken = [match for match in known if not _holds(rule, match.value)]
    decision: Decision = rule.severity if broken else "pass"
    if undefined:
        meant: Decision = rule.if_undefined if rule.if_undefined != "error" else "fail"
        decision = max(decision, meant, key=_RANK.__getitem__)
    missed = undefined if undefined and rule.if_undefined in ("warn", "fail") else []
    return Check(
        id=rule.id,
        decision=decision,
        severity=rule.severity,
        path=rule.path,
        matched=len(numbers),
        observed=_worst(rule, known),
        limit=rule.limit,
        message=rule.message,
        detail=_detail(rule, known, broken, undefined),
        evaluated=bool(broken) or decision == "pass",
        skipped=bool(numbers) and not known,
        findings=[Finding(path=match.path, observed=match.value) for match in [*broken, *missed][:MAX_FINDINGS]],
    )


def _known(rules: Sequence[Rule], rule: Rule, report: Document) -> str | None:
    """The first of `skip_if_present` that the report has a value at."""
    for path in rule.skip_if_present:
        if any(match.value is not None for match in _found(rules, rule, path, report)):
            return path
    return None


def _skipped(rule: Rule, path: str) -> Check:
    return Check(
        id=rule.id,
        decision="pass",
        severity=rule.severity,
        path=rule.path,
        matched=0,
        observed=None,
        limit=rule.limit,
        message=rule.message,
        detail=f"skipped: applies only without {path}",
        skipped=True,
    )


class _Number(NamedTuple):
    """A number that is judged, the path of the one that was taken off, and what is left."""

    path: str
    minus: str | None
    value: Scalar | None

    @property
    def name(self) -> str:
        """Its path, and the path that was taken off."""
        return f"{self.path} - {self.minus}" if self.minus else self.path


def _numbers(rules: Sequence[Rule], rule: Rule, report: Document) -> list[_Number]:
    """What the rule is about, less what it takes off."""
    found = _found(rules, rule, rule.path, report)
    if rule.of_words:
        return [_Number(match.path, None, _unredacted(match.value)) for match in found]
    if rule.minus is None:
        return [_Number(match.path, None, match.value) for match in found]
    others = _found(rules, rule, rule.minus, report)
    if len(others) == 1:
        others *= len(found)
    if len(others) != len(found):
        raise rule_error(
            rules, rule, f"{rule.path} matches {len(found)} numbers, and minus ({rule.minus}) {len(others)}"
        )
    return [
        _Number(one.path, other.path, _apply(lambda a, b: a - b, one.value, other.value))
        for one, other in zip(found, others, strict=True)
    ]


def _unredacted(value: Scalar | None) -> Scalar | None:
    """A text; None where words were taken out of it, since nobody can tell which."""
    return None if REDACTED in str(value) else value


def _found(rules: Sequence[Rule], rule: Rule, path: str, report: Document) -> list[Match]:
    try:
        found = Path.parse(path).matches(report, MAX_MATCHES + 1)
    except PathError as error:
        raise rule_error(rules, rule, str(error)) from error
    if len(found) > MAX_MATCHES:
        raise rule_error(rules, rule, f"{path} matches more than {MAX_MATCHES} numbers; name fewer")
    if not found and not (rule.of_words and Path.parse(path).takes_all):
        raise rule_error(rules, rule, f"{path} matches nothing in this report")
    return found


def _against(rule: Rule, number: _Number, report: Report, baseline: Report) -> _Number:
    """A number over, or less, the one at the same place of the baseline; none where they measure other things."""
    for path in (number.path, number.minus or ""):
        inner = path.split("].", 1)[-1] if path.startswith("layers[") else path
        if incomparable(inner.split(".")[0], baseline, report) is not None:
            return number._replace(value=None)
    other = _value_at(number.path, baseline)
    if number.minus is not None:
        other = _apply(lambda a, b: a - b, other, _value_at(number.minus, baseline))
    if rule.of_baseline == "difference":
        return number._replace(value=_apply(lambda a, b: a - b, number.value, other))
    floor = rule.floor or 0.0

    def ratio(one: float, two: float) -> float | None:
        one, two = max(one, floor), max(two, floor)
        return one / two if two > 0 else None

    return number._replace(value=_apply(ratio, number.value, other))


def _value_at(path: str, report: Report) -> Scalar | None:
    """The one value at a concrete path; None where this report has none."""
    found = Path.parse(path).matches(report)
    return found[0].value if len(found) == 1 else None


def _apply(operation: Callable[[float, float], float | None], one: Scalar | None, other: Scalar | None) -> float | None:
    if one is None or other is None or isinstance(one, str) or isinstance(other, str):
        return None
    return operation(float(one), float(other))


def _holds(rule: Rule, value: Scalar | None) -> bool:
    if rule.equals is not None:
        return type(value) is type(rule.equals) and value == rule.equals
    if rule.of_words:
        forbidden, allowed = rule.without_words, rule.only_words
        return not (
            (forbidden is not None and words_of(tuple(forbidden)).within(str(value)))
            or (allowed is not None and words_of(tuple(allowed)).beside_others(str(value)))
        )
    if value is None or isinstance(value, str):
        return False
    return (rule.min is None or value >= rule.min) and (rule.max is None or value <= rule.max)


def _worst(rule: Rule, known: list[_Number]) -> Scalar | None:
    """The number farthest beyond a limit, or else nearest to one."""
    if not known:
        return None
    if rule.equals is not None or rule.of_words:
        return next((match.value for match in known if not _holds(rule, match.value)), known[0].value)
    return max((match.value for match in known), key=lambda value: _excess(rule, value))


def _excess(rule: Rule, value: Scalar | None) -> float:
    """By how much a number is beyond its limits; negative within."""
    if value is None or isinstance(value, str):
        return float("inf")
    below = rule.min - value if rule.min is not None else float("-inf")
    above = value - rule.max if rule.max is not None else float("-inf")
    return max(below, above)


def _detail(rule: Rule, known: list[_Number], broken: list[_Number], undefined: list[_Number]) -> str:
    kind = {None: "", "ratio": " times the baseline's", "difference": " more than the baseline's"}[rule.of_baseline]
    said = []
    if broken:
        worst = sorted(broken, key=lambda match: _excess(rule, match.value), reverse=True)
        named = ", ".join(f"{match.name} is {_shown(match.value)}{kind}" for match in worst[:_SHOWN])
        more = f" and {len(broken) - _SHOWN} more" if len(broken) > _SHOWN else ""
        count = f"{len(broken)} of {len(known)} " if len(known) > 1 else ""
        count += "texts " if rule.of_words and len(known) > 1 else "text: " if rule.of_words else ""
        said.append(f"{count}{_beyond(rule)}: {named}{more}")
    elif rule.of_words:
        said.append(f"{len(known)} texts checked: {rule.limit}" if known or not undefined else "")
    elif known:
        value = f"{_shown(_worst(rule, known))}{kind}"
        said.append(
            f"{value} (limit {rule.limit})" if len(known) == 1 else f"all {len(known)} {rule.limit}, nearest {value}"
        )
    if undefined:
        less = f" minus {rule.minus}" if rule.minus else ""
        said.append(f"no {_thing(rule)} at {', '.join(match.path for match in undefined[:_SHOWN])}{less}")
    return "; ".join(part for part in said if part)


def _thing(rule: Rule) -> str:
    return "text" if rule.of_words else "number"


def _beyond(rule: Rule) -> str:
    """What is wrong with a number that does not hold the rule."""
    if rule.equals is not None:
        return f"not {_shown(rule.equals)}"
    if rule.of_words:
        kinds = (("contain a forbidden word", rule.without_words), ("contain words not on the list", rule.only_words))
        return " or ".join(f"{kind} ({listed(words)})" for kind, words in kinds if words is not None)
    if rule.min is not None and rule.max is not None:
        return f"outside {rule.min:g} to {rule.max:g}"
    return f"below {rule.min:g}" if rule.min is not None else f"above {rule.max:g}"


def _shown(value: Scalar | None) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)


def _comparable(found: Comparison) -> Check:
    """Numbers of reports that were measured otherwise may differ by that alone."""
    unlike = [
        what
        for what, same in (
            ("base model", found.same_base),
            ("data", found.same_dataset),
            ("settings", found.same_settings),
        )
        if not same
    ]
    return Check(
        id=BASELINE_CHECK,
        decision="warn" if unlike else "pass",
        severity="warn",
        path="",
        matched=1,
        observed=not unlike,
        limit="= true",
        message="measure both models alike: otherwise numbers differ for that reason alone",
        findings=[Finding(path="baseline", observed=False)] if unlike else [],
        detail=_unlike(unlike, found) if unlike else "both were measured alike",
    )


def _unlike(what: list[str], found: Comparison) -> str:
    named = f" ({', '.join(found.unlike_settings)})" if found.unlike_settings else ""
    return f"the baseline has other {' and '.join(what)}{named}"
