"""A bundle as far as the interface reads it, and encoders that answer without a model."""

import json
from pathlib import Path
from typing import Any

from clip_core.inference.manifest import FileFacts, Manifest, Parity, ParityRow, Source, Variant
from clip_core.network import Preprocessing
from clip_core.run.paths import RunPaths, checkpoint_name
from clip_tui.encoder import Answer, Encoders, Model, Progress
from tests.tui.conftest import COLOURS

Groups = list[tuple[int, int, str, list[tuple[str, str]]]]


def manifest(run: str, step: int, difference: float = 1.5e-7) -> Manifest:
    rows = tuple(
        ParityRow(
            file=file,
            batch=batch,
            tokens=tokens,
            inputs=40,
            max_abs_diff=difference,
            mean_cosine=0.9999999,
            least_cosine=0.9999999,
        )
        for file, tokens in (("onnx/vision_model.onnx", None), ("onnx/text_model.onnx", 77))
        for batch in (1, 4)
    )
    return Manifest(
        source=Source(run=run, checkpoint=checkpoint_name(step), step=step, weights_sha256="0" * 64),
        embed_dim=256, vocab_size=300, end_token=1, context_length=77, logit_scale=14.3,
        preprocessing=Preprocessing(), opset=20, versions={},
        variants=(Variant(precision="fp32", vision="onnx/vision_model.onnx", text="onnx/text_model.onnx",
                          parity=Parity(tolerance=1e-5, images=40, captions=18, top1_agreement=1.0, rows=rows)),),
        files={"onnx/vision_model.onnx": FileFacts(size=19_000_000, sha256="0" * 64)},
    )  # fmt: skip


def write_bundle(run: Path, step: int) -> None:
    paths = RunPaths(run)
    paths.bundle.mkdir(parents=True)
    paths.bundle_manifest.write_text(manifest(run.name, step).model_dump_json())
    paths.export_log.write_text(f"converting checkpoints/{checkpoint_name(step)} ...\ncomparing on 40 images ...\n")


def write_findings(run: Path, kinds: list[str], groups: Groups) -> None:
    """As clip-data check --findings writes them."""
    named = [
        {"kind": kind, "count": sum(g[0] == k for g in groups), "text": f"pairs that are {kind}", "advice": "look"}
        for k, kind in enumerate(kinds)
    ]
    head = {"data": "pairs.json", "time": 0.0, "pairs": 6, "images": 6, "findings": named}
    lines = [json.dumps(head), *map(json.dumps, groups)]
    RunPaths(run).findings.write_text("\n".join(lines) + "\n")


class FixedEncoders(Encoders):
    """Answers at once, and always the same; a model of another name than torch and onnx ranks the other way round."""

    async def ask(self, model: Model, op: str, progress: Progress = lambda text: None, **values: Any) -> Answer:
        scores = [0.9 - 0.1 * rank for rank in range(len(COLOURS))]
        captions = [f"a {colour} square" for colour in COLOURS]
        run = model.path if model.name in ("torch", "onnx") else model.path.parent.parent
        images = [str(run.parent / "images" / f"{colour}.png") for colour in COLOURS]
        items = captions if values.get("texts") else images
        if model.name not in ("torch", "onnx"):
            items = items[::-1]
        ranks = {name: [items.index(name) + 1, scores[items.index(name)]] for name in values.get("expected", ())}
        classes = values.get("classes", [])
        result = {
            "search": {"items": items, "similarities": scores, "total": len(items), "ranks": ranks, "skipped": 0},
            "classification": {"classes": captions, "probabilities": scores},
            "classification_set": {
                "images": images,
                "predicted": [min(row // 2, len(classes) - 1) for row in range(len(images))],
                "probabilities": scores,
            },
        }[op]
        source = f"step 40 of {run}/bundle" if model.backend == "onnx" else f"step 40 of {run}"
        return Answer(result | {"milliseconds": 12.0}, model.backend, source, 0.012)
