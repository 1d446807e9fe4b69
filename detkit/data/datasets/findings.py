"""What the check of a data set finds: told in its report, or together in one refusal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

from detkit.data.datasets.base import Finding

#: What happens to a record that cannot be used: the data set is refused, or the record is left out and counted.
Policy = Literal["error", "skip"]

#: So many cases are named in a report or an error.
NUM_EXAMPLES = 3

LEFT_OUT = "left out"


class BadDataError(ValueError):
    """A data set that is refused; the message names its source and every kind of fault."""


class Findings:
    """Collects what the check finds, in the order in which it looks.

    What refuses the data set is kept until :meth:`raise_refused`, so that the user hears of all kinds of faults at
    once and not of one in each run.

    Args:
        source: path of the annotations, which every refusal begins with.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self._found: list[Finding] = []
        self._refusals: list[str] = []

    def __iter__(self) -> Iterator[Finding]:
        return iter(self._found)

    def note(self, problem: str, consequence: str, rows: Sequence[int], describe: Callable[[int], str]) -> None:
        """Count the ``rows`` that have a ``problem``, if there are any.

        Args:
            problem: what is wrong, in words; the report counts by it.
            consequence: what is done about it.
            rows: numbers of the records.
            describe: tells what stands in a row.
        """
        if len(rows):
            examples = tuple(describe(row) for row in rows[:NUM_EXAMPLES])
            self._found.append(Finding(problem, consequence, len(rows), examples))

    def refuse(
        self,
        problem: str,
        rows: Sequence[int],
        describe: Callable[[int], str],
        *,
        policy: Policy,
        option: str,
        hint: str = "",
    ) -> None:
        """Refuse the data set for a ``problem`` under the policy "error", count it as left out under "skip".

        The refusal names the first cases, the ``hint``, and the ``option`` that would leave them out.

        Args:
            problem: what is wrong, in words.
            rows: numbers of the records.
            describe: tells what stands in a row.
            policy: whether they refuse the data set.
            option: the argument by which the user chooses the policy.
            hint: what else helps, ending in ". "; "" for nothing.
        """
        self.note(problem, LEFT_OUT, rows, describe)
        if len(rows) and policy == "error":
            found = self._found.pop()
            more = "; ..." if found.count > len(found.examples) else ""
            self.reject(
                f"{problem} ({found.count}): {'; '.join(found.examples)}{more}. {hint}"
                f"Correct the file, or leave them out with {option}=skip"
            )

    def reject(self, message: str) -> None:
        """Refuse the data set for something that no option leaves out."""
        self._refusals.append(message)

    @property
    def is_refused(self) -> bool:
        """Whether there is something to refuse the data set for."""
        return bool(self._refusals)

    def raise_refused(self) -> None:
        """End here if there is something to refuse the data set for.

        Raises:
            BadDataError: naming the source and all kinds of faults, a line each, and what else was found.
        """
        if self._refusals:
            first, *others = self._refusals
            raise BadDataError("\n  ".join([f"{self.source}: {first}", *others, *map(str, self._found)]))
