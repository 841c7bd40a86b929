"""A client of an unmodified vLLM: computes Z from an image, sends it with the image and P, and reads the labels.

Only the vision tower and the aspect modules are loaded here; the language model runs in the engine. The engine
computes V from the image by itself, or is given it as well (`send_visual`), so that the tower runs once.
"""

import base64
import io
import json
import math
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from masp.adapters import read_aspects, read_info, read_prompt
from masp.backbones.files import find
from masp.backbones.loading import choose_device, choose_dtype
from masp.backbones.qwen2_vl import load_vision
from masp.core.errors import MaspError, UsageError, did_you_mean
from masp.data.prefetch import open_any_image
from masp.serving.vllm_export import ADAPTER, CLOSES, OPENS, pixel_bounds, read_note

Content = list[dict[str, Any]]


class EngineError(MaspError):
    """The engine did not answer, or answered something else than the labels' probabilities."""


class VllmClient:
    """Asks a vLLM server about images.

    Args:
        folder: what `masp export --as vllm` wrote.
        backbone: folder or hub id of the backbone, for its vision tower.
        url: of the server, such as "http://127.0.0.1:8000".
        api_key: sent as a bearer token, where the server wants one.
        send_visual: send V instead of the image (`--enable-mm-embeds`).
        device: where the vision tower runs.
        dtype: of the tower and of what is sent; "auto": the one that the export names.
        timeout: seconds to wait for an answer.

    Raises:
        AdapterError: a damaged export.
        BackboneError: the backbone cannot be loaded.
        UsageError: another backbone than the one that was exported.
    """

    def __init__(
        self,
        folder: str | Path,
        backbone: str,
        url: str,
        api_key: str | None = None,
        send_visual: bool = False,
        device: str = "auto",
        dtype: str = "auto",
        timeout: float = 60.0,
    ) -> None:
        self._note = read_note(folder)
        home, files = Path(folder) / ADAPTER, find(backbone)
        if files.fingerprint != self._note["backbone"]["fingerprint"]:
            raise UsageError(f"{backbone} is another backbone", "the one that was exported", "Name that one.")
        self._info = read_info(home)
        self._device = choose_device(device)
        self._dtype = choose_dtype(self._note["dtype"] if dtype == "auto" else dtype, self._device)
        self._vision = load_vision(files, self._dtype, self._device)
        if bounds := pixel_bounds(self._info):
            self._vision.bound_pixels(bounds.get("min_pixels"), bounds.get("max_pixels"))
        several = self._info.tasks
        prompts = {name: read_prompt(home, name if several else None) for name in self._note["tasks"]}
        self._prompts = {name: vectors for name, (_, vectors) in prompts.items()}
        self._infos = {name: info for name, (info, _) in prompts.items()}
        self._aspects = read_aspects(home)[1].to(self._device) if self._info.aspects else None
        self._url, self._key, self._timeout = url.rstrip("/"), api_key, timeout
        self._send_visual = send_visual

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks."""
        return tuple(self._note["tasks"])

    def predict(self, image: str | Path | Image.Image, task: str | None = None) -> dict[str, float]:
        """The probability of every label, normalised over the labels.

        Args:
            image: a file or an RGB image.
            task: one of `tasks`; None: the only one.

        Raises:
            ImageError: the image cannot be read.
            UsageError: no such task.
            EngineError: no answer, or another one than was asked for.
        """
        log_p = self.log_probabilities(image, task)
        largest = max(log_p.values())
        shares = {label: math.exp(value - largest) for label, value in log_p.items()}
        return {label: share / sum(shares.values()) for label, share in shares.items()}

    def log_probabilities(self, image: str | Path | Image.Image, task: str | None = None) -> dict[str, float]:
        """The log-probability of each label's first token over the whole vocabulary; see `predict`."""
        name = self._chosen(task)
        answer = self._post("/v1/chat/completions", self.request(image, name))
        return self.read(answer, name)

    def request(self, image: str | Path | Image.Image, task: str | None = None) -> dict[str, Any]:
        """The body that is sent."""
        name = self._chosen(task)
        one = self._note["tasks"][name]
        info = self._infos[name]
        opened = open_any_image(image, info.longest_side, info.method.resolved().shrink_rounding or "nearest")
        visual, grid, aspects = self._read_image(opened)
        prompt = {"type": "prompt_embeds", "data": packed(self._prompts[name].to(self._dtype))}
        content: Content = [prompt] if one["both_places"] else []
        content.append({"type": "text", "text": OPENS})
        if aspects is not None:
            content.append({"type": "prompt_embeds", "data": packed(aspects)})
        if self._send_visual:
            embeds = {"image_embeds": packed(visual), "image_grid_thw": packed(grid)}
            content.append({"type": "image_embeds", "image_embeds": embeds})
        else:
            content.append({"type": "image_url", "image_url": {"url": _png(opened)}})
        content += [{"type": "text", "text": CLOSES}, prompt, {"type": "text", "text": one["question"]}]
        wanted = {"logprobs": True, "logprob_token_ids": one["first_ids"], "return_tokens_as_token_ids": True}
        return {
            "model": "masp",
            "messages": [{"role": "user", "content": content}],
            "max_tokens": 1,
            "temperature": 0,
            **wanted,
        }

    @torch.no_grad()
    def _read_image(
        self, image: Image.Image
    ) -> tuple[Float[Tensor, "visual dim"], Tensor, Float[Tensor, "spliced dim"] | None]:
        """V, the grid of its patches (time, rows, columns), and Z one aspect after the other."""
        pixels = self._vision.preprocess([image])
        assert pixels.grid is not None
        visual = self._vision.visual_tokens(pixels.to(self._device))
        aspects = None if self._aspects is None else self._aspects(visual).tokens.flatten(0, 2).to(self._dtype)
        return visual.tokens[0], pixels.grid[0], aspects

    def read(self, answer: dict[str, Any], task: str | None = None) -> dict[str, float]:
        """The labels' log-probabilities out of the server's answer.

        Raises:
            EngineError: it does not hold them.
        """
        one = self._note["tasks"][self._chosen(task)]
        try:
            listed = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
            by_id = {int(entry["token"].removeprefix("token_id:")): float(entry["logprob"]) for entry in listed}
            return {label: by_id[token] for label, token in zip(one["labels"], one["first_ids"], strict=True)}
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise EngineError(
                f"the engine's answer lacks the labels' log-probabilities ({type(error).__name__}: {error})",
                "logprobs with the tokens of logprob_token_ids",
                f"Start vLLM {self._note['vllm']} as README.md in the export says.",
            ) from None

    def _chosen(self, task: str | None) -> str:
        known = self.tasks
        if task is None and len(known) == 1:
            return known[0]
        if task not in known:
            raise UsageError(f"the task {task}", f"one of {', '.join(known)}", did_you_mean(str(task), known))
        return task

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        headers = {"Content-Type": "application/json"}
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key}"
        request = urllib.request.Request(self._url + path, json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=self._timeout) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            text = error.read(400).decode(errors="replace")
            raise EngineError(f"{self._url} answered {error.code}: {text}", "200") from None
        except (OSError, ValueError) as error:
            raise EngineError(f"{self._url} does not answer: {error}", "a running vLLM server") from None


def packed(tensor: Tensor) -> str:
    """A tensor as vLLM takes it: `torch.save` in base64."""
    buffer = io.BytesIO()
    torch.save(tensor.detach().cpu().clone().contiguous(), buffer)
    return base64.b64encode(buffer.getvalue()).decode()


def _png(image: Image.Image) -> str:
    """The image as a data URL; PNG, as other formats would change pixels."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
