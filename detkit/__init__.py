"""detkit: train, evaluate and compare object detectors from YAML.

From Python: :func:`detkit.load` a trained detector, :func:`detkit.create` one to train in a loop of one's own, or
:func:`detkit.train` as the command line does.
"""

from typing import TYPE_CHECKING, Any

from detkit.utils.version import __version__

if TYPE_CHECKING:
    from detkit.app.library import Prediction, Predictor, Run, create, load, train

__all__ = ["Prediction", "Predictor", "Run", "__version__", "create", "load", "train"]


def __getattr__(name: str) -> Any:
    """The door from Python, which needs torch, is opened when it is used."""
    if name in __all__:
        from detkit.app import library

        return getattr(library, name)
    raise AttributeError(f"module 'detkit' has no attribute {name!r}")
