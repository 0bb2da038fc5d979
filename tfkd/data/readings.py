"""One text, read twice: as the student's tokenizer cuts it, and as those of teachers with tokenizers of their own do."""

import numpy as np

from tfkd.data.store import Store
from tfkd.run_dir import sha256


class Readings(Store):
    """A store whose batches hold beside a row's own word pieces those of other tokenizers, as `teacher.token_ids` and so on.

    All batches of one padded length have one padded length of each other reading too, long enough for every row that can be
    among them: there are as many shapes as without.

    Arguments:
        store: the rows as the student reads them.
        others: prefix, such as `teacher.` -> the same rows, read otherwise.

    Raises:
        ValueError: the rows are not the same.
    """

    def __init__(self, store: Store, others: dict[str, Store]):
        super().__init__(store.path, store.target)
        self.others, self._limits = others, {}
        order = np.argsort(self.lengths, kind="stable")
        self._sorted = self.lengths[order]
        for prefix, other in others.items():
            if len(other) != len(self):
                raise ValueError(f"{other.path} has {len(other)} rows, {self.path} has {len(self)}: not the same rows")
            self._limits[prefix] = np.maximum.accumulate(other.lengths[order])

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of what `gather` gives."""
        return (*super().inputs, *(prefix + name for prefix, other in self.others.items() for name in other.inputs))

    @property
    def key(self) -> str:
        """Hex digest of all readings."""
        return "-".join([super().key, *(prefix + sha256(other.path) for prefix, other in self.others.items())])

    def gather(self, rows: np.ndarray, length: int) -> dict[str, np.ndarray]:
        """Model inputs of `rows` (B,): their own padded to `length`, the others' to the length that goes with it."""
        batch = super().gather(rows, length)
        last = int(np.searchsorted(self._sorted, length, side="right")) - 1
        for prefix, other in self.others.items():
            theirs = other.gather(rows, int(self._limits[prefix][last]) if last >= 0 else 1)
            batch |= {prefix + name: values for name, values in theirs.items()}
        return batch
