"""Learning rates of a field that sleeps while the scene is still taken for static."""


def waking_rates(
    rates: dict[str, float], progress: float, warm_up: float, final: float, rise: float
) -> dict[str, float]:
    """Learning rates that are zero in the warm-up, then rise evenly for a share `rise`, and fall to `final` of themselves."""
    since = progress - warm_up
    if since < 0:
        return dict.fromkeys(rates, 0.0)
    factor = (min(1.0, since / rise) if rise > 0 else 1.0) * final ** (since / (1 - warm_up))
    return {name: rate * factor for name, rate in rates.items()}
