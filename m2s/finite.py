"""A type of command line options: numbers within a range, of which NaN and infinity are none."""

import math
from typing import Any

import click


class Finite(click.FloatRange):
    """`click.FloatRange`, which by itself lets NaN through, for no comparison with it is true."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:  # noqa: ANN401
        """As click's; fails where the number is not finite."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number
