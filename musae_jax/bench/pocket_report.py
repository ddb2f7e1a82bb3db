"""The figures of the pocket model as the table of its card: what was measured, beside what, and whether it was met."""

from typing import Any

from musae_jax.bench.obedience import QUESTIONS

HEADS = ("measure", "figure", "beside it", "target")
UNITS = {"diatonic_mass": "", "onset_rate": " a second", "chroma_entropy": " bits"}


def pocket_rows(figures: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of the table: texts under `HEADS`, and `met`, True, False, or None where there is no target."""
    rows: list[dict[str, Any]] = []

    def add(measure: str, figure: str, beside: str = "", target: str = "", met: bool | None = None) -> None:
        rows.append(dict(zip((*HEADS, "met"), (measure, figure, beside, target, met))))

    told, codec = figures["prediction"], figures["codec"]
    first, unigram, bigram, trigram = (told[k][0] for k in ("with_text", "unigram", "bigram", "trigram"))
    add(
        "cross-entropy of codebook 0, nats",
        f"{first:.2f}",
        f"unigram {unigram:.2f}, bigram {bigram:.2f}, trigram {trigram:.2f}, a recurrent net of 256 units"
        f" {told['recurrent']:.2f}, without text {told['without_text'][0]:.2f}",
        f"0.6 below the bigram ({bigram - first:.2f}), 45 % below the unigram ({_percent(1 - first / unigram)})",
        bigram - first >= 0.6 and first <= 0.55 * unigram,
    )
    add(
        "cross-entropy of the other codebooks, nats",
        _list(told["with_text"][1:]),
        f"unigram {_list(told['unigram'][1:])}, bigram {_list(told['bigram'][1:])}, trigram"
        f" {_list(told['trigram'][1:])}, without text {_list(told['without_text'][1:])}",
    )
    add("codes used, by codebook", " / ".join(map(_percent, codec["used"])))
    lost = codec["log_mel_db_quantised"] - codec["log_mel_db_unquantised"]
    add(
        "log-mel distance through the codec, dB",
        f"{codec['log_mel_db_quantised']:.2f}",
        f"unquantised {codec['log_mel_db_unquantised']:.2f}",
        f"within 1 dB of it ({lost:.2f})",
        lost <= 1,
    )
    add(
        "SI-SDR through the codec, dB",
        f"{codec['si_sdr_db_quantised']:.1f}",
        f"unquantised {codec['si_sdr_db_unquantised']:.1f}",
    )
    for name, unit in UNITS.items():
        one = figures["samples"][name]
        off, low, high = (f"{round(100 * (ratio - 1)):+d} %" for ratio in (one["ratio"], *one["ci"]))
        add(
            f"{name.replace('_', ' ')} of unconditional samples",
            f"{one['samples']:.2f}{unit}",
            f"real music through the codec {one['codec']:.2f}, random codes {one['random_codes']:.2f}",
            f"within 10 % of real music ({off}; {low} to {high})",
            abs(one["ratio"] - 1) <= 0.1,
        )
    for name in QUESTIONS:
        one = figures["obedience"][name]
        low, high = one["ci"]
        judge = " and ".join(
            f"{_percent(one[where])} {what}"
            for where, what in (("rendered", "on rendered music"), ("codec", "on real music through the codec"))
            if where in one
        )
        add(
            f"{name} as asked, {one['asked']} prompts",
            f"{_percent(one['generated'])} ({_percent(low)} to {_percent(high)})",
            f"chance {_percent(one['chance'])}; the judge {judge}",
            f"{_percent(one['target'])}",
            one["generated"] >= one["target"],
        )
    use = figures["use"]
    add("size, MB", f"{use['megabytes']:.1f}", "", "40", use["megabytes"] <= 40)
    add(
        "speed, seconds of sound a second", f"{use['times_real_time']:.1f}",
        f"one prompt, guidance {use['guidance']:g}, top-p {use['top_p']:g}", "1 on 2 CPU cores",
        use["times_real_time"] >= 1,
    )  # fmt: skip
    return rows


def pocket_markdown(figures: dict[str, Any]) -> str:
    """The table in Markdown, as the card and the README show it."""
    lines = ["| " + " | ".join(HEADS) + " |", "|" + "---|" * len(HEADS)]
    for row in pocket_rows(figures):
        verdict = {True: " (met)", False: " (**missed**)", None: ""}[row["met"]]
        lines.append("| " + " | ".join([*(row[head] for head in HEADS[:3]), row["target"] + verdict]) + " |")
    return "\n".join(lines)


def _list(values: list[float]) -> str:
    return " / ".join(f"{value:.2f}" for value in values)


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
