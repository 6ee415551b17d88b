"""Report -> Markdown in GitHub's dialect: what fits into a pull request."""

from __future__ import annotations

from layerdrift.contract.report import Layer, Report
from layerdrift.render import learned, sentences
from layerdrift.render.escaping import markdown, markdown_code


def render(report: Report) -> str:
    """Headline, advice, warnings, the table of layers, provenance."""
    parts = [
        f"# {markdown(report.name) or 'Layer drift report'}",
        f"**{pending}**" if (pending := sentences.pending(report)) else None,
        sentences.headline(report),
        sentences.outcome(report),
        sentences.answers(report),
        sentences.roles(report),
        *(f"**{markdown(line)}**" for line in sentences.cautions(report)),
        sentences.reference(report),
        sentences.advice(report),
        markdown(" ".join(learned.summary(report))),
        *(f"> **{warning.code}**: {markdown(warning.message)}" for warning in report.warnings),
        layer_table(report),
        " ".join(sentences.limits(report)),
        _provenance(report),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def layer_table(report: Report) -> str:
    """A row for each layer."""
    saes = [layer.sae for layer in report.layers if layer.sae is not None]
    head = [
        "layer",
        "zone",
        "drift (1 - CKA)",
        "numerical resolution",
        "of random weights'",
        "drifted",
        "CKA",
        "95 % interval",
    ]
    head += ["centred cosine", "relative L2"]
    head += [f"graft ({graft.measure})"] if (graft := report.causal.graft) else []
    head += ["SAE FVU base", "SAE FVU tuned", "transfer excess"] if saes else []
    warmed = any(sae.warm_start is not None for sae in saes)
    if warmed:
        head += ["latents beyond the floor: new", "lost", "shifted"]
    lines = [_row(head), _row(["---"] * 2 + ["---:"] * (len(head) - 2))]
    return "\n".join(lines + [_row(_filled(_cells(layer), len(head))) for layer in report.layers])


def _cells(layer: Layer) -> list[str]:
    token = layer.similarity["token"]
    cells = [
        f"{layer.index} {layer.name}",
        layer.zone,
        sentences.number(layer.drift, 4),
        sentences.number(sentences.resolution(layer), 5),
        sentences.percent(layer.relative_drift.value),
        "yes" if layer.drifted else "no",
        sentences.number(token.cka.value, 4),
        sentences.interval(token.cka, 4),
        sentences.number(token.cosine_centred.value),
        sentences.number(token.relative_l2.value),
    ]
    if layer.graft is not None:
        cells.append(sentences.number(layer.graft.prefix.value))
    if layer.sae is not None:
        cells += [sentences.number(layer.sae.base.fvu), sentences.number(layer.sae.tuned.fvu)]
        cells.append(sentences.number(layer.sae.transfer_excess))
        if layer.sae.warm_start is not None:
            warm = layer.sae.warm_start
            cells.append(sentences.excess(warm.new_excess, warm.new_error))
            cells.append(sentences.excess(warm.lost_excess, warm.lost_error))
            cells.append(sentences.excess(warm.shifted_excess, warm.shifted_error))
    return cells


def _filled(cells: list[str], columns: int) -> list[str]:
    """A layer without autoencoders has no numbers of theirs."""
    return cells + ["—"] * (columns - len(cells))


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _provenance(report: Report) -> str:
    base, tuned = report.models["base"], report.models["tuned"]
    return (
        f"{markdown_code(base.uri)} (sha256 `{base.fingerprint[:12]}`) → {markdown_code(tuned.uri)} (sha256 "
        f"`{tuned.fingerprint[:12]}`); {report.dataset.analysed_tokens} tokens of {report.dataset.analysed_texts} "
        f"texts; layerdrift {report.engine.version}; analysis `{report.analysis_id}`."
    )
