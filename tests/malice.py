"""What somebody could send: files and configs that would run a command, which leaves a file behind."""

from pathlib import Path
from typing import Any


class Payload:
    """Touches ``mark`` when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return __import__("os").system, (f"touch {self.mark}",)


def foreign(mark: Path) -> dict[str, dict[str, Any]]:
    """Configs that would touch ``mark`` if they were built, by what is wrong with them."""
    touch = f"touch {mark}"
    system = {"_target_": "os.system", "command": touch}
    return {
        "another library": system,
        "a list of words": {"_target_": "subprocess.run", "args": ["touch", str(mark)]},
        "python itself": {"_target_": "builtins.eval", "source": f"__import__('os').system({touch!r})"},
        "through a module of ours": {"_target_": "anomaly3d.runs.lineage.subprocess.run", "args": ["touch", str(mark)]},
        "through torch": {"_target_": "torch.optim.optimizer.torch.hub.os.system", "command": touch},
        "a function of ours": {"_target_": "anomaly3d.train.main", "argv": ["plugins=[os]"]},
        "a reader named by text": {"_target_": "monai.transforms.LoadImage", "reader": "os.system", "command": touch},
        "nested": {"_target_": "monai.transforms.Compose", "transforms": [{"a": [system]}]},
    }
