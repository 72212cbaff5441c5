"""Fine-tunes two layers of MiniLM in every way the pairs need; runs in the throw-away environment, needs torch.

    python train.py MODEL_FOLDER OUT_FOLDER

`MODEL_FOLDER` holds `model.safetensors` and `vocab.txt` of all-MiniLM-L6-v2. Each result is an .npz of float32 arrays:
`base` (pre-trained layers, a new classification head trained alone), and from it `head`, `full`, `long`, `lora`; and
`scratch-a`, `scratch-b`: one layer trained twice from random weights. The task is real, small and on every machine:
tell from a sentence of the standard library's documentation which package it comes from.

Seeds are fixed and one thread computes, so the same machine gives the same bytes. Another torch, another kind of
processor or another patch version of Python (its texts differ) may not: the `made.json` of each pair has the digests of
what came out.
"""

import ast
import importlib.util
import re
import sys
from pathlib import Path

import numpy as np
import safe
import torch
from torch.nn import functional

LAYERS, WIDTH, HEADS, WORDS = 2, 384, 12, 32
PACKAGES = ("asyncio", "ctypes", "email", "http", "importlib", "logging", "unittest", "xml")
State = dict[str, torch.Tensor]


def sentences(package: str) -> list[str]:
    """Sentences of the docstrings of one package of the standard library, in a fixed order."""
    spec = importlib.util.find_spec(package)
    assert spec and spec.submodule_search_locations, package
    found = []
    for file in sorted(Path(spec.submodule_search_locations[0]).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(errors="replace"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                found += re.split(r"(?<=[.:])\s+", ast.get_docstring(node) or "")
    return sorted({text for text in found if 5 <= len(text.split()) <= 60})


class Words:
    """WordPiece with the model's own vocabulary."""

    def __init__(self, vocabulary: Path) -> None:
        self.ids = {word: number for number, word in enumerate(vocabulary.read_text(encoding="utf-8").splitlines())}

    def encode(self, text: str) -> list[int]:
        """Numbers of a sentence, cut and padded to `WORDS`."""
        out = [self.ids["[CLS]"]]
        for word in re.findall(r"\w+|[^\w\s]", text.lower()):
            out += self._pieces(word)
        return ([*out[: WORDS - 1], self.ids["[SEP]"]] + [0] * WORDS)[:WORDS]

    def _pieces(self, word: str) -> list[int]:
        pieces, start = [], 0
        while start < len(word):
            ends = (end for end in range(len(word), start, -1) if self._key(word, start, end) in self.ids)
            end = next(ends, 0)
            if not end:
                return [self.ids["[UNK]"]]
            pieces.append(self.ids[self._key(word, start, end)])
            start = end
        return pieces

    @staticmethod
    def _key(word: str, start: int, end: int) -> str:
        return ("##" if start else "") + word[start:end]


def forward(state: State, embedded: torch.Tensor, mask: torch.Tensor, layers: int) -> torch.Tensor:
    """The classes' scores of BERT layers over embedded words."""
    x = embedded
    rows, words, _ = x.shape

    def dense(name: str, value: torch.Tensor) -> torch.Tensor:
        return functional.linear(value, state[f"{name}.weight"], state[f"{name}.bias"])

    def norm(name: str, value: torch.Tensor) -> torch.Tensor:
        return functional.layer_norm(value, (WIDTH,), state[f"{name}.weight"], state[f"{name}.bias"], 1e-12)

    for layer in range(layers):
        at = f"encoder.layer.{layer}"
        query, key, value = (
            dense(f"{at}.attention.self.{part}", x).view(rows, words, HEADS, -1).transpose(1, 2)
            for part in ("query", "key", "value")
        )
        scores = query @ key.transpose(2, 3) / (WIDTH // HEADS) ** 0.5 + (1 - mask)[:, None, None, :] * -1e9
        mixed = (scores.softmax(-1) @ value).transpose(1, 2).reshape(rows, words, WIDTH)
        x = norm(f"{at}.attention.output.LayerNorm", x + dense(f"{at}.attention.output.dense", mixed))
        inner = functional.gelu(dense(f"{at}.intermediate.dense", x))
        x = norm(f"{at}.output.LayerNorm", x + dense(f"{at}.output.dense", inner))
    pooled = (x * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)
    return dense("classifier", pooled)


class Task:
    """Texts, their packages, and the frozen embeddings under them."""

    def __init__(self, model: Path) -> None:
        self.tensors = {name: torch.from_numpy(array) for name, array in safe.read(model / "model.safetensors").items()}
        words = Words(model / "vocab.txt")
        texts = [(words.encode(text), label) for label, name in enumerate(PACKAGES) for text in sentences(name)]
        self.ids = torch.tensor([ids for ids, _ in texts])
        self.labels = torch.tensor([label for _, label in texts])

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """What the first trained layer sees."""
        part = "embeddings."
        x = self.tensors[part + "word_embeddings.weight"][ids]
        x = x + self.tensors[part + "position_embeddings.weight"][: ids.shape[1]]
        x = x + self.tensors[part + "token_type_embeddings.weight"][0]
        name = part + "LayerNorm."
        return functional.layer_norm(x, (WIDTH,), self.tensors[name + "weight"], self.tensors[name + "bias"], 1e-12)

    def train(self, state: State, names: list[str], steps: int, rate: float, seed: int, rank: int = 0) -> State:
        """A copy of `state` after so many steps of AdamW on the named tensors, or on low-rank updates of them."""
        torch.manual_seed(seed)
        layers = len({name.split(".")[2] for name in state if name.startswith("encoder.")})
        state = {name: value.clone() for name, value in state.items()}
        low: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        if rank:
            for name in names:
                rows, columns = state[name].shape
                down = torch.nn.Parameter(torch.randn(rank, columns) * columns**-0.5)
                low[name] = torch.nn.Parameter(torch.zeros(rows, rank)), down
            trained = [tensor for pair in low.values() for tensor in pair]
        else:
            trained = [state[name].requires_grad_() for name in names]
        optimiser = torch.optim.AdamW(trained, lr=rate, weight_decay=0.01)
        losses = []
        for _ in range(steps):
            rows = torch.randint(len(self.ids), (8,))
            ids = self.ids[rows]
            used = state | {name: state[name] + up @ down for name, (up, down) in low.items()}
            scores = forward(used, self.embed(ids), (ids != 0).float(), layers)
            loss = functional.cross_entropy(scores, self.labels[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(float(loss.detach()))
        print(
            f"  {steps} steps at {rate:g}: loss {np.mean(losses[:10]):.3f} -> {np.mean(losses[-10:]):.3f}", flush=True
        )
        for name, (up, down) in low.items():
            state[name] = state[name] + up @ down
        return {name: value.detach() for name, value in state.items()}


def fresh(names: State, seed: int) -> State:
    """Random weights of the same shapes."""
    torch.manual_seed(seed)
    return {
        name: torch.ones_like(value) if "LayerNorm.weight" in name
        else torch.zeros_like(value) if name.endswith("bias")
        else torch.randn(value.shape) * 0.04
        for name, value in names.items()
    }  # fmt: skip


def main() -> None:
    """Makes all of them, skipping what is there."""
    model, out = Path(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    task = Task(model)
    base = {
        name: value for name, value in sorted(task.tensors.items())
        if name.startswith(tuple(f"encoder.layer.{layer}." for layer in range(LAYERS)))
    }  # fmt: skip
    torch.manual_seed(1)
    base["classifier.weight"], base["classifier.bias"] = torch.randn(len(PACKAGES), WIDTH) * 0.02, torch.zeros(8)
    head = ["classifier.weight", "classifier.bias"]
    attention = [name for name in base if name.endswith(("query.weight", "value.weight"))]
    base = task.train(base, head, 40, 1e-3, 2)
    one = {name: value for name, value in base.items() if "layer.1." not in name}
    makers = {
        "base": lambda: base,
        "head": lambda: task.train(base, head, 40, 3e-4, 3),
        "full": lambda: task.train(base, list(base), 40, 2e-5, 4),
        "long": lambda: task.train(base, list(base), 200, 5e-5, 5),
        "lora": lambda: task.train(base, attention, 40, 3e-4, 6, rank=8),
        "scratch-a": lambda: task.train(fresh(one, 7), list(one), 60, 3e-4, 8),
        "scratch-b": lambda: task.train(fresh(one, 9), list(one), 60, 3e-4, 10),
    }
    for name, make in makers.items():
        print(name, flush=True)
        if not (out / f"{name}.npz").exists():
            with (out / f"{name}.part").open("wb") as file:
                np.savez(file, **{key: value.numpy() for key, value in make().items()})
            (out / f"{name}.part").replace(out / f"{name}.npz")


if __name__ == "__main__":
    main()
