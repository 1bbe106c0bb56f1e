"""`casd plan`: print what a run or a sweep will take. Everything can be read without color."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from casd.cli.quiet import quiet_libraries
from casd.engines import make_engine
from casd.engines.local import Local
from casd.planning.advice import fits
from casd.planning.costs import StageCost, disk_needed
from casd.planning.phases import Phase
from casd.planning.plan import Plan, download_bytes, plans, time_with_workers
from casd.planning.workload import NOTHING, Work
from casd.report.terminal import output_console, shown
from casd.utils.disk import readable_size
from casd.utils.distributed import is_main

NOT_KNOWN = "–"
ORDER = (
    *("corpus", "base", "tokens", "inject", "tune", "unlearn", "weights"),
    *("clean_model", "evaluate", "utility", "activations", "persistence", "score", "report"),
)
"""The kinds of stages, in the order of work."""
ESTIMATES = (
    "Estimates: FLOPs per parameter and token: 6 in training (4 with an adapter), 2 in a forward pass; plus attention. A step"
    " of generation takes at least the time to read weights and cache."
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
    """Print the plan of a run, or of all runs of a sweep: models, memory of each kind of run, then every stage once."""
    console = console or output_console()
    console.print()
    _print_heading(console, planned)
    _print_memory(console, planned)
    _print_stages(console, planned)
    _print_notes(console, planned)


def _print_heading(console: Console, planned: Sequence[Plan]) -> None:
    first = planned[0]
    swept = {
        "model": [plan.config.model.label for plan in planned],
        "objective": [plan.config.unlearning.objective.name for plan in planned],
        "seed": [str(plan.config.seed) for plan in planned],
    }
    named = [f"{what} {', '.join(dict.fromkeys(values))}" for what, values in swept.items()]
    _line(console, f"Plan of {len(planned)} run{'s' if len(planned) > 1 else ''}: {'; '.join(named)}", "bold")
    console.rule(style="dim")
    facts = Table.grid(padding=(0, 2, 0, 0))
    facts.add_column(no_wrap=True)
    facts.add_column(overflow="fold")
    for plan in {(plan.config.model.label, plan.trained): plan for plan in planned}.values():
        built = plan.blueprint
        shape = f"{built.config.model_type}: {built.layers} blocks, width {built.width}, vocabulary {built.vocab_size:,}"
        trained = " and ".join(f"{number:,}" for number in dict.fromkeys(plan.trained))
        what = "all trained" if set(plan.trained) == {built.parameters} else f"trained: {trained}"
        facts.add_row(plan.config.model.label, shown(f"{built.parameters:,} parameters in {built.dtype} ({shape}), {what}"))
    for names in dict.fromkeys(tuple(plan.config.backdoor) for plan in planned):
        facts.add_row("backdoors", shown(f"{len(names)}: {', '.join(names)}"))
    texts = first.texts
    if texts.looked_at:
        known = f"{texts.looked_at:,} documents of up to {texts.document} tokens, {texts.mean_document:.0f} on average"
        facts.add_row("texts", f"{known}; prompts of up to {texts.prompt}")
    else:
        facts.add_row(
            "texts", f"taken to have {texts.document} tokens (model.max_length), until corpus and tokens are in the store"
        )
    facts.add_row("device", shown(_device(first)))
    console.print(facts)
    console.print()


def _device(plan: Plan) -> str:
    here = plan.machine
    division = "divided over them (FSDP)" if plan.devices.sharded else "the whole model on each"
    number = f"{plan.devices.number} × {here.device}, {division}" if plan.devices.number > 1 else here.device
    memory = "memory unknown: set runtime.memory_gib"
    if here.memory is not None:
        memory = f"{readable_size(here.memory)} ({'runtime.memory_gib' if here.given else 'found here'})"
    return f"{number}; {memory}; {plan.speed or 'speed unknown: set runtime.tflops for times'}"


def _print_memory(console: Console, planned: Sequence[Plan]) -> None:
    plan, here = planned[0], planned[0].machine
    table = _table("Memory of a device" if plan.devices.number > 1 else "Memory", "model", "phase", "texts at once")
    beside = "process, copy" if here.shared else "context"
    for heading in ("weights", "gradients", "optimizer", "activations", beside, "peak", "share"):
        table.add_column(heading, justify="right")
    rows = {(plan.config.model.label, phase): plan for plan in planned for phase in plan.phases}
    for (name, phase), plan in rows.items():
        need, peak = phase.need, phase.on_device(plan.machine)
        parts = (need.weights, need.gradients, need.optimizer, need.activations, peak - need.total, peak)
        cells = (shown(name), shown(phase.name), f"{phase.rows} × {phase.tokens}")
        table.add_row(*cells, *map(_bytes, parts), _verdict(phase, plan))
    console.print(table)
    if here.shared:
        note = "process: memory of this process now; copy: the trained weights, from which removals are restored."
    else:
        largest = max((phase.host for plan in planned for phase in plan.phases), default=0)
        note = (
            "context: an allowance for CUDA. evaluate and capture halve their batch when memory runs out. In CPU memory: up to"
            f" {readable_size(largest)} for loading and for the copy from which removals are restored;"
            f" {readable_size(here.host - here.process)} are available."
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


def _print_stages(console: Console, planned: Sequence[Plan]) -> None:
    """Print each stage of the plans once, with what is left to do."""
    costs = _distinct(planned)
    title = "Left to do" if len(planned) == 1 else f"Left to do in {len(planned)} runs, shared stages counted once"
    table = _table(title, "stage")
    for heading in ("all", "in the store", "tokens", "FLOPs", "time", "stays on disk"):
        table.add_column(heading, justify="right")
    kinds = {cost.stage.name for cost in costs}
    for kind in (kind for kind in ORDER if kind in kinds):
        table.add_row(kind, *_stage_cells([cost for cost in costs if cost.stage.name == kind]))
    table.add_section()
    table.add_row("in all", *_stage_cells(costs))
    console.print(table)


def _distinct(planned: Sequence[Plan]) -> list[StageCost]:
    """Return the cost of each stage of the plans once; of one that a plan has to make again, that cost."""
    costs: dict[str, StageCost] = {}
    for cost in (cost for plan in planned for cost in plan.stages):
        known = costs.setdefault(cost.stage.key, cost)
        if cost.again and not known.again:
            costs[cost.stage.key] = cost
    return list(costs.values())


def _print_notes(console: Console, planned: Sequence[Plan]) -> None:
    costs, runtime = _distinct(planned), planned[0].config.runtime
    engine = make_engine(planned[0].config.engine)
    workers = engine.workers
    # Workers on one CPU divide its cores, those on one GPU its time, and how much they gain is not known.
    divided = planned[0].machine.shared or (isinstance(engine, Local) and engine.on_each_gpu() > 1)
    if workers > 1 and not divided:
        seconds = sum(cost.work.seconds for cost in costs if cost.to_do and cost.work)
        together = time_with_workers(planned, workers)
        if together > 0:  # neither nothing to do nor unknown
            busy = f"they are busy for {seconds / (workers * together):.0%} of it"
            _line(console, f"With {workers} workers (engine.workers): about {_duration(together)}; {busy}.")
    kept, needed = disk_needed(costs, workers)
    line = f"Disk: {readable_size(kept)} stay in {runtime.store}, {readable_size(needed)} at most with checkpoints;"
    style = "bold red" if needed > planned[0].free else ""
    line += f" {readable_size(planned[0].free)} are free."
    downloads = {plan.config.model.path: download_bytes(plan.config, plan.blueprint) for plan in planned}
    if any(downloads.values()):
        line += f" Download: about {readable_size(sum(downloads.values()))}, into the hub's cache."
    _line(console, line, style)
    _line(console, ESTIMATES, "dim")
    for note in dict.fromkeys(note for plan in planned for note in plan.notes):
        _line(console, note, "dim")


def _stage_cells(costs: Sequence[StageCost]) -> list[str]:
    left = [cost for cost in costs if cost.to_do]
    again = sum(cost.again for cost in left)
    work = sum((cost.work for cost in left if cost.work), NOTHING)
    kept = sum(cost.kept or 0 for cost in left)
    return [
        str(len(costs)),
        f"{sum(cost.done for cost in costs)}{f', {again} again' if again else ''}",
        *_work_cells(work),
        readable_size(kept) if kept else NOT_KNOWN,
    ]


def _work_cells(work: Work) -> list[str]:
    if not work.tokens:
        return [NOT_KNOWN] * 3
    return [_number(work.tokens), f"{work.flops:.2g}", NOT_KNOWN if math.isnan(work.seconds) else _duration(work.seconds)]


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
