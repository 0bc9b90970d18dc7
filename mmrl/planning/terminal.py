"""Formats plans for the terminal."""

from collections.abc import Iterable, Mapping

from mmrl.planning.measure import Plan


def size(count: float) -> str:
    """Bytes as "12.3 GiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024 or unit == "GiB":
            break
        count /= 1024
    return f"{count:.0f} {unit}" if unit == "B" else f"{count:,.2f} {unit}"


def duration(seconds: float) -> str:
    """Seconds as "12.3 ms"."""
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.2f} ms"


def lines(plan: Plan) -> Iterable[str]:
    """All lines of one plan."""
    mesh = ", ".join(f"{axis} {count}" for axis, count in plan.mesh.items())
    yield f"{plan.topology}: {plan.device}, mesh {mesh}; global batch {plan.batch_size:,}"
    total = sum(plan.parameters.values())
    parts = ", ".join(f"{name} {count:,}" for name, count in plan.parameters.items())
    yield f"parameters    {total:,} ({parts})"
    state = ", ".join(f"{name} {size(held)}" for name, held in plan.state.items() if held >= 2**10)
    yield f"state         {state} on each device"
    yield from _replicated(plan)
    yield from _memory(plan)
    yield (
        f"arithmetic    {plan.model_flops:.4g} FLOPs that the step needs on all devices, "
        f"{plan.executed_flops:.4g} that it executes"
    )
    if plan.collectives is not None:
        yield from _collectives(plan)
    if plan.roofline is not None:
        yield from _roofline(plan)
    yield f"compiled in   {plan.compile_seconds:.0f} s"


def _replicated(plan: Plan) -> Iterable[str]:
    if plan.replicated:
        yield "not divided   parameter dimensions that every device holds whole:"
        for line in plan.replicated:
            yield f"              {line}"


def _memory(plan: Plan) -> Iterable[str]:
    if plan.shortage is not None:
        had = size(plan.shortage.had)
        yield (
            f"memory        {size(plan.shortage.wanted)} on each device, where the compiler may "
            f"use {had}"
        )
        yield "              DOES NOT FIT"
        return
    memory = plan.memory
    if memory is None:
        return
    yield (
        f"memory        {size(memory.peak)} at the peak on each device: arguments "
        f"{size(memory.arguments)}, temporaries {size(memory.temporaries)}, outputs that replace "
        f"no argument {size(memory.outputs)}"
    )
    if plan.capacity is None:
        yield "              the memory of these devices is not known"
    else:
        verdict = "FITS" if plan.fits else "DOES NOT FIT"
        yield (
            f"              {verdict} in {size(plan.capacity)} "
            f"({memory.peak / plan.capacity:.0%} of it)"
        )


def _collectives(plan: Plan) -> Iterable[str]:
    found = plan.collectives or {}
    if not found:
        yield "collectives   none"
    for number, (kind, one) in enumerate(sorted(found.items())):
        title = "collectives" if number == 0 else ""
        note = "" if one.exact else "; loops of unknown length count once"
        times = f"{one.count:,} times, {size(one.bytes)} sent by each device{note}"
        yield f"{title:13s} {kind}: {times}"
    if found:
        yield "              (inside a loop as often as it runs)"


def _roofline(plan: Plan) -> Iterable[str]:
    limits = plan.roofline
    if limits is None:
        return
    note = "" if plan.loops_known else " (some loops have no known length and count once)"
    yield (
        f"roofline      compute {duration(limits.compute)}, memory {duration(limits.memory)} for "
        f"{size(plan.memory_bytes or 0.0)}, interconnect {duration(limits.interconnect)}{note}"
    )
    utilisation = f"{plan.utilisation:.0%}" if plan.utilisation is not None else "unknown"
    yield (
        f"              at least {duration(limits.least)} a step ({limits.bound} is longest; "
        f"{duration(limits.serial)} if nothing overlapped), so at most {utilisation} model FLOPs "
        "utilisation"
    )


def table(plans: Mapping[str, Plan | str]) -> Iterable[str]:
    """One row for each alternative of a sweep."""
    width = max(map(len, plans))
    yield (
        f"{'':{width}s}  {'arguments':>11s} {'temporary':>11s} {'peak':>11s} {'fits':>5s} "
        f"{'sent':>11s} {'compute':>10s} {'memory':>10s} {'links':>10s}"
    )
    for name, plan in plans.items():
        yield f"{name:{width}s}  " + (plan if isinstance(plan, str) else _row(plan))


def _row(plan: Plan) -> str:
    if plan.shortage is not None or plan.memory is None:
        wanted = size(plan.shortage.wanted) if plan.shortage else "unknown"
        return f"{'':11s} {'':11s} {wanted:>11s} {'no':>5s}"
    memory, limits = plan.memory, plan.roofline
    sent = sum(one.bytes for one in (plan.collectives or {}).values())
    sizes = " ".join(
        f"{size(count):>11s}" for count in (memory.arguments, memory.temporaries, memory.peak)
    )
    fits = {True: "yes", False: "no", None: "?"}[plan.fits]
    times = ""
    if limits is not None:
        times = " ".join(
            f"{duration(value):>10s}"
            for value in (limits.compute, limits.memory, limits.interconnect)
        )
    return f"{sizes} {fits:>5s} {size(sent):>11s} {times}"
