"""Durations as text."""


def clock(seconds: float) -> str:
    """h:mm:ss, or m:ss below an hour."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


def rough(seconds: float) -> str:
    """One unit, such as 40 s, 12 min, 3 h or 5 days; below zero counts as 0 s."""
    seconds = max(seconds, 0.0)
    for size, unit, limit in ((1, "s", 90), (60, "min", 90), (3600, "h", 36)):
        if seconds < limit * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86400:.0f} days"
