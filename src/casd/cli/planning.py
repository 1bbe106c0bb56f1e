"""`casd plan`: print what a run or a sweep will take. Everything can be read without color."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from casd.cli.run import quiet_libraries
from casd.planning.advice import fits
from casd.planning.phases import Phase, injection_adapters, removal_adapters
from casd.planning.plan import Plan, StageCost, disk_needed, download_bytes, plans
from casd.report.terminal import output_console, shown
from casd.utils.disk import readable_size
from casd.utils.distributed import is_main

NOT_KNOWN = "–"
ORDER = (
    *("corpus", "base", "tokens", "inject", "tune", "unlearn", "weights"),
    *("evaluate", "utility", "activations", "score", "report"),
)
"""The kinds of stages, in the order of work."""
ESTIMATES = (
    "FLOPs are estimates: for each parameter and token 6 in training (4 with an adapter), 2 in a forward pass and in"
    " generation, plus attention (arXiv 2001.08361; arXiv 2204.02311, appendix B)."
)


def plan(overrides: Sequence[str]) -> None:
    """Print what the run, or all runs of the sweep, that the overrides describe will take. Nothing is run.

    Raises:
        CasdError: overrides that cannot work, or a model whose shape is not known on this machine.
    """
    quiet_libraries()
    from casd.config.compose import configs

    composed = configs(overrides)
    if is_main():
        print_plans(plans(composed))


def print_plans(planned: Sequence[Plan], console: Console | None = None) -> None:
    """Print the plan of a run, or of all runs of a sweep: memory for each kind of run, then every stage once."""
    console = console or output_console()
    console.print()
    for alike in _alike(planned):
        _print_run(console, alike)
    _print_stages(console, planned)


def _alike(plans: Sequence[Plan]) -> list[list[Plan]]:
    """Group the plans that have one model and need the same memory, such as those that differ only in their seed."""
    groups: list[list[Plan]] = []
    for plan in plans:
        for group in groups:
            if _key(group[0]) == _key(plan):
                group.append(plan)
                break
        else:
            groups.append([plan])
    return groups


def _key(plan: Plan) -> tuple[object, ...]:
    return plan.config.model.name, plan.phases, plan.texts


def _print_run(console: Console, alike: Sequence[Plan]) -> None:
    plan = alike[0]
    config, built, texts, here = plan.config, plan.blueprint, plan.texts, plan.machine
    names = [f"{each.config.unlearning.objective.name}, seed {each.config.seed}" for each in alike]
    _line(console, f"Plan: {config.model.name}; {'; '.join(names)}", "bold")
    console.rule(style="dim")
    facts = Table.grid(padding=(0, 2, 0, 0))
    facts.add_column(no_wrap=True)
    facts.add_column(overflow="fold")
    shape = f"{built.layers} blocks, width {built.width}, vocabulary {built.vocab_size:,}"
    model = f"{built.parameters:,} parameters in {built.dtype} ({built.config.model_type}: {shape})"
    facts.add_row("model", shown(model))
    trained = {
        "injection": built.trained_parameters(injection_adapters(config)),
        "each removal": built.trained_parameters(removal_adapters(config)[-1:]),
    }
    facts.add_row("trained", ", ".join(f"{number:,} in {what}" for what, number in trained.items()))
    if texts.looked_at:
        known = f"{texts.looked_at:,} documents of up to {texts.document} tokens, {texts.mean_document:.0f} on average"
        facts.add_row("texts", f"{known}; prompts of up to {texts.prompt}")
    else:
        facts.add_row("texts", f"all of {texts.document} tokens (model.max_length), until corpus and tokens are in the store")
    division = "divided over them (FSDP)" if plan.devices.sharded else "the whole model on each"
    number = f"{plan.devices.number} × {here.device}, {division}" if plan.devices.number > 1 else here.device
    memory = "of unknown memory; set runtime.memory_gib"
    if here.memory is not None:
        memory = f"{readable_size(here.memory)} ({'runtime.memory_gib' if here.given else 'found here'})"
    facts.add_row("device", shown(f"{number}, {memory}"))
    console.print(facts)
    console.print()
    _print_memory(console, plan)


def _print_memory(console: Console, plan: Plan) -> None:
    here = plan.machine
    table = _table("Memory of a device" if plan.devices.number > 1 else "Memory", "phase", "texts at once")
    beside = "process, copy" if here.shared else "context"
    for heading in ("weights", "gradients", "optimizer", "activations", beside, "peak", "of the memory"):
        table.add_column(heading, justify="right")
    for phase in plan.phases:
        need, peak = phase.need, phase.on_device(here)
        parts = (need.weights, need.gradients, need.optimizer, need.activations, peak - need.total, peak)
        table.add_row(shown(phase.name), f"{phase.rows} × {phase.tokens}", *map(_bytes, parts), _verdict(phase, plan))
    console.print(table)
    if here.shared:
        note = "process: memory of this process now; copy: the trained weights, from which removals are restored."
    else:
        largest = max((phase.host for phase in plan.phases), default=0)
        note = (
            "context: a round allowance for CUDA's context and libraries. evaluate and capture halve their batch when memory"
            f" runs out. In CPU memory: up to {readable_size(largest)} for loading and for the copy from which removals are"
            f" restored; {readable_size(here.host - here.process)} are available."
        )
    _line(console, f"activations: all temporary tensors, including logits and the key-value cache. {note}", "dim")
    console.print()


def _verdict(phase: Phase, plan: Plan) -> Text:
    here = plan.machine
    if not fits(phase, here):
        return shown("too much", "bold red")
    if here.memory is None:
        return shown(NOT_KNOWN)
    share = phase.on_device(here) / here.memory
    return shown(f"{share:.0%}" if share <= 1 else "if halved")


def _print_stages(console: Console, plans: Sequence[Plan]) -> None:
    """Print each stage of the plans once, with what is left to do."""
    config = plans[0].config
    costs: dict[str, tuple[StageCost, Plan]] = {}
    for plan in plans:
        for cost in plan.stages:
            known = costs.setdefault(cost.stage.key, (cost, plan))
            if cost.again and not known[0].again:
                costs[cost.stage.key] = (cost, plan)
    title = "Left to do" if len(plans) == 1 else f"Left to do in {len(plans)} runs, shared stages counted once"
    table = _table(title, "stage")
    for heading in ("all", "in the store", "tokens", "FLOPs", "time", "stays on disk"):
        table.add_column(heading, justify="right")
    kinds = {cost.stage.name for cost, _ in costs.values()}
    for kind in (kind for kind in ORDER if kind in kinds):
        table.add_row(kind, *_stage_cells([pair for pair in costs.values() if pair[0].stage.name == kind]))
    table.add_section()
    table.add_row("in all", *_stage_cells(list(costs.values())))
    console.print(table)
    kept, needed = disk_needed([cost for cost, _ in costs.values()])
    line = f"Disk: {readable_size(kept)} stay in {config.runtime.store}, {readable_size(needed)} at most with checkpoints;"
    _line(console, f"{line} {readable_size(plans[0].free)} are free.", "bold red" if needed > plans[0].free else "")
    downloads = {plan.config.model.path: download_bytes(plan.config, plan.blueprint) for plan in plans}
    if any(downloads.values()):
        _line(console, f"Download: about {readable_size(sum(downloads.values()))} go into the hub's cache as well.")
    if config.runtime.tflops is None:
        _line(console, "Times: set runtime.tflops to the sustained TFLOP/s of your device to estimate them.")
    _line(console, ESTIMATES, "dim")
    if any(not plan.texts.looked_at for plan in plans):
        _line(console, "Tokens, FLOPs and times assume texts of model.max_length; real texts may be shorter.", "dim")
    for note in dict.fromkeys(plan.note for plan in plans if plan.note):
        _line(console, note, "dim")


def _stage_cells(costs: Sequence[tuple[StageCost, Plan]]) -> list[str]:
    left = [(cost, plan) for cost, plan in costs if cost.to_do]
    again = sum(cost.again for cost, _ in left)
    done = f"{sum(cost.done for cost, _ in costs)}{f', {again} again' if again else ''}"
    tokens = [cost.tokens for cost, _ in left if cost.tokens]
    flops = [(cost.flops, plan) for cost, plan in left if cost.flops]
    seconds = [
        value / (plan.config.runtime.tflops * 1e12 * plan.devices.number) for value, plan in flops if plan.config.runtime.tflops
    ]
    kept = [cost.kept for cost, _ in left if cost.kept]
    return [
        str(len(costs)),
        done,
        _number(sum(tokens)) if tokens else NOT_KNOWN,
        f"{sum(value for value, _ in flops):.2g}" if flops else NOT_KNOWN,
        _duration(sum(seconds)) if seconds else NOT_KNOWN,
        readable_size(sum(kept)) if kept else NOT_KNOWN,
    ]


def _table(title: str, *columns: str) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold", title_justify="left")
    table.title, table.title_style = shown(title), "bold"
    for column in columns:
        table.add_column(column, no_wrap=True)
    return table


def _line(console: Console, text: str, style: str = "") -> None:
    console.print(shown(text, style))


def _bytes(n_bytes: int) -> str:
    return readable_size(n_bytes) if n_bytes else NOT_KNOWN


def _number(value: float) -> str:
    """A number with three digits, in thousands, millions, …: "1.23 M"."""
    units = iter(("", " k", " M", " G", " T"))
    unit = next(units)
    while value >= 999.5:
        value, unit = value / 1000, next(units, unit)
    return f"{value:.3g}{unit}"


def _duration(seconds: float) -> str:
    """Seconds as "12 s", "3.4 min", "5.6 h" or "7.8 d"."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 1 else "< 1 s"
