"""Recipes of a data set: timed, and written for any option and time."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from omegaconf import DictConfig

from detkit.app.recipe.files import Place, with_said
from detkit.app.recipe.given import Choice, Given, Measured
from detkit.app.recipe.made import Option, make
from detkit.app.recipe.measure import Bench, fits_of, what_is_timed
from detkit.app.recipe.notes import describe, notes
from detkit.app.recipe.speed import Pace, Speeds
from detkit.app.run.next_command import word
from detkit.data.datasets.base import DetectionDataset
from detkit.utils.commands import command


@dataclass(frozen=True, slots=True)
class Writer:
    """Writes experiments on the data ``train``.

    Attributes:
        preset: of the data.
        said: lines that the command line has of them.
        threads: of the CPU, where they are not torch's own choice.
        scratch: for what is only timed.
        asked: the other words of a command that writes the same.
    """

    given: Given
    train: DetectionDataset
    preset: str
    said: Sequence[Choice]
    threads: int | None
    scratch: Place
    asked: Sequence[str]

    @property
    def bench(self) -> Bench:
        """What is timed: the experiments that would be written."""

        def compose(choices: Sequence[Choice]) -> DictConfig:
            self.scratch.write("timed", [], with_said(choices, self.said))
            return self.scratch.compose()

        return Bench(self.given, self.preset, compose)

    @property
    def timed(self) -> dict[str, Any]:
        """What of the experiments their timings depend on."""
        return what_is_timed(self.bench, self.said)

    def write(self, place: Place, given: Given, speeds: Speeds, option: Option, tried: Sequence[str]) -> None:
        """The experiment for ``option`` in ``place``; ``tried``: what its head says of others."""
        measured = Measured(speeds, fits_of(self.bench, option, self.train))
        choices = with_said(make(given, measured, option, self.preset, self.threads), self.said)
        pace = speeds.paces[option.detector]
        remarks = [
            self._origin(),
            *describe(given.findings),
            _of_pace(speeds.machine, pace),
            *(f"NOTE: {line}" for line in notes(given, pace, option.view)),
            *tried,
        ]
        headline = f"{option.detector} for {place.name}: {given.findings.num_images} images, {given.minutes:g} minutes"
        place.write(headline, remarks, choices)

    def writer_at(self, speeds: Speeds) -> Callable[[Option, float, Place], None]:
        """Writes an option for some minutes into a place."""
        return lambda option, minutes, place: self.write(
            place, replace(self.given, minutes=minutes), speeds, option, []
        )

    def _origin(self) -> str:
        said = [shlex.quote(word(choice.key, choice.value)) for choice in self.said]
        line = " ".join([command("recipe"), f"data={self.preset}", *said, *map(shlex.quote, self.asked)])
        return (
            f"Written by {line}; not yet run to the end: no claim. Every line may be changed; above it stands why it "
            "is as it is (docs/recipes.md)."
        )


def _of_pace(machine: str, pace: Pace) -> str:
    return (
        f"Timed on {machine}, seconds an image: training {pace.train.fixed:.3f} + {pace.train.per_megapixel:.3f} a "
        f"megapixel, detecting {pace.val.fixed:.3f} + {pace.val.per_megapixel:.3f}"
    )
