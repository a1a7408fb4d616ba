"""What loading ViT-L-14 costs: peak memory over the size of the file, and seconds, beside open_clip's own loader.

    python -m benchmarks.loading [ROUNDS] [MODEL]

Random weights are written once by open_clip as a `.pt` state dict and as safetensors, and once by transformers as a
Hugging Face folder. Each loading runs in a process of its own; its memory is the largest resident size (mapped pages
of the file included) less that after the imports; its seconds run from the call until every weight has been read once,
so that a loader which only maps the file does not seem to be free.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from benchmarks.train_run import header, row

_MEASURE = """
import json, psutil, resource, sys, time, warnings
warnings.simplefilter("ignore")
{imports}
from pathlib import Path
path, name = Path(sys.argv[1]), sys.argv[2]
before, start = psutil.Process().memory_info().rss, time.perf_counter()
{load}
total = sum(float(weight.detach().sum()) for weight in model.parameters())
seconds = time.perf_counter() - start
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps([peak - before, seconds]))
"""
_OURS = _MEASURE.format(
    imports="import torch; from clip_core.model.checkpoint import load_model",
    load="model = load_model(path, model_name=name if path.is_file() else None).model",
)
_OPEN_CLIP = _MEASURE.format(
    imports="import torch, open_clip",
    load="model = open_clip.create_model(name, pretrained=str(path)).eval()",
)
_TRANSFORMERS = _MEASURE.format(
    imports="import torch; from transformers import CLIPModel",
    load="model = CLIPModel.from_pretrained(path).eval()",
)
_WRITE = """
import sys, torch, open_clip
from pathlib import Path
from safetensors.torch import save_file
folder, name = Path(sys.argv[1]), sys.argv[2]
model = open_clip.create_model(name)
torch.save(model.state_dict(), folder / "weights.pt")
save_file(model.state_dict(), folder / "weights.safetensors")
"""
_WRITE_HUGGING_FACE = """
import sys
from transformers import CLIPConfig, CLIPModel
from open_clip import get_model_config
facts = get_model_config(sys.argv[2])
vision, text = facts["vision_cfg"], facts["text_cfg"]
shared = lambda width, layers, heads: dict(
    hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers, num_attention_heads=heads)
CLIPModel(CLIPConfig(
    projection_dim=facts["embed_dim"],
    vision_config=shared(vision["width"], vision["layers"], vision["width"] // 64) | dict(
        image_size=vision["image_size"], patch_size=vision["patch_size"]),
    text_config=shared(text["width"], text["layers"], text["heads"]),
)).save_pretrained(sys.argv[1])
"""


def main(rounds: int, name: str) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        child(_WRITE, folder, name)
        child(_WRITE_HUGGING_FACE, folder / "hf", name)
        cases = {
            ".pt state dict": (folder / "weights.pt", {"clip-tui": _OURS, "open_clip": _OPEN_CLIP}),
            ".safetensors": (folder / "weights.safetensors", {"clip-tui": _OURS, "open_clip": _OPEN_CLIP}),
            "Hugging Face folder": (folder / "hf", {"clip-tui": _OURS, "transformers": _TRANSFORMERS}),
        }
        print(header("file", "GB", "loader", "peak memory / file", "median seconds", "seconds / clip-tui's"))
        for form, (path, loaders) in cases.items():
            size = sum(file.stat().st_size for file in ([path] if path.is_file() else path.glob("*.safetensors")))
            found: dict[str, list[list[float]]] = {loader: [] for loader in loaders}
            for _ in range(rounds):
                for loader, program in loaders.items():
                    found[loader].append(json.loads(child(program, path, name).splitlines()[-1]))
            ours = median(seconds for _, seconds in found["clip-tui"])
            for loader, measured in found.items():
                memory = max(peak for peak, _ in measured) / size
                seconds = median(seconds for _, seconds in measured)
                print(
                    row(form, f"{size / 1e9:.2f}", loader, f"{memory:.2f}", f"{seconds:.1f}", f"{seconds / ours:.1f}"),
                    flush=True,
                )


def child(program: str, path: Path, name: str) -> str:
    command = [sys.executable, "-c", program, str(path), name]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3, sys.argv[2] if len(sys.argv) > 2 else "ViT-L-14")
