"""vLLM without vLLM: what the export and the client send, and what the plugin computes, give masp's own numbers.

`Engine` does with a chat message what vLLM does: it renders the exported template, puts placeholders for images
and vectors, takes M-RoPE positions from the grids, and runs transformers' own language model.
"""

import base64
import io
import json
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace
from typing import Any

import jinja2
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoTokenizer

from fixtures import tiny
from fixtures.adapters import write_adapter
from masp.adapters import combine, read_prompt
from masp.backbones.files import find
from masp.backbones.loading import load_backbone
from masp.backbones.qwen2_vl import load_vision
from masp.core.errors import AdapterError, BackboneError, UsageError
from masp.model.scoring import first_word
from masp.predictor import Masp
from masp.serving import vllm_plugin
from masp.serving.vllm_client import EngineError, VllmClient
from masp.serving.vllm_export import export_vllm, read_note

VECTORS = "<vectors>"


class Engine(torch.nn.Module):
    """What masp's model class is built on: the methods of vLLM's class that it calls or replaces."""

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__()
        folder = vllm_config.model_config.model
        self.hf = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
        self.config = self.hf.config

    @torch.no_grad()
    def embed_multimodal(self, **kwargs: Any) -> tuple[torch.Tensor, ...]:
        grid = kwargs["image_grid_thw"]
        found = self.hf.model.visual(kwargs["pixel_values"], grid_thw=grid).pooler_output
        return found.split((grid.prod(-1) // 4).tolist())

    def iter_mm_grid_thw(self, mm_features: Any):
        for feature in mm_features:
            _, rows, columns = feature.grid
            yield feature.offset, 1, rows // 2, columns // 2, 1.0

    def get_mrope_input_positions(self, input_tokens: list[int], mm_features: Any) -> torch.Tensor:
        parts: list[torch.Tensor] = []
        done = 0

        def text(length: int) -> torch.Tensor:
            start = 0 if not parts else int(parts[-1].max()) + 1
            return torch.arange(length).expand(3, -1) + start

        for offset, time, rows, columns, _ in self.iter_mm_grid_thw(mm_features):
            parts.append(text(offset - done))
            grid = torch.stack(torch.meshgrid(*map(torch.arange, (time, rows, columns)), indexing="ij")).reshape(3, -1)
            parts.append(grid + int(parts[-1].max()) + 1)
            done = offset + time * rows * columns
        return torch.cat([*parts, text(len(input_tokens) - done)], dim=1)

    def load_weights(self, weights: Any) -> set[str]:
        return {name for name, _ in weights}


@dataclass
class Replacement:
    """A prompt update as vLLM has it."""

    modality: str
    replacement: Any


class Processor:
    """The part of vLLM's processor that writes placeholders."""

    def __init__(self, folder: str, pad: int, grid: torch.Tensor) -> None:
        self.info = SimpleNamespace(ctx=SimpleNamespace(model_config=SimpleNamespace(model=folder)))
        self._pad, self._grid = pad, grid

    def _get_prompt_updates(self, *_: Any) -> list[Replacement]:
        images = Replacement("image", lambda index: [self._pad] * (int(self._grid.prod()) // 4))
        return [images, Replacement("video", lambda index: [1, 2])]


def rendered(folder, content: list[dict[str, Any]]) -> str:
    source = (folder / "masp_template.jinja").read_text()
    return jinja2.Template(source).render(messages=[{"role": "user", "content": content}])


def log_p(engine: Any, folder, content, vectors, placeholder, grid, embeds) -> torch.Tensor:
    """Log-probabilities of the next token after a message, by vLLM's rules."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids: list[int] = []
    rows: list[torch.Tensor] = []
    feature = SimpleNamespace(grid=grid.tolist(), offset=0)
    left = iter(vectors)
    words = engine.hf.get_input_embeddings()
    image = tokenizer.convert_tokens_to_ids("<|image_pad|>")

    def write(text: str) -> None:
        for token in tokenizer(text, add_special_tokens=False).input_ids if text else []:
            if token == image:
                feature.offset = len(ids)
                ids.extend(placeholder)
                rows.append(embeds)
            else:
                ids.append(token)
                rows.append(words(torch.tensor([token])))

    first, *rest = rendered(folder, content).split(VECTORS)
    write(first)
    for part in rest:
        piece = next(left)
        rows.append(piece)
        ids.extend([0] * len(piece))
        write(part)
    positions = engine.get_mrope_input_positions(ids, [feature])
    with torch.no_grad():
        hidden = engine.hf.model.language_model(
            inputs_embeds=torch.cat(rows)[None], position_ids=positions[:, None], use_cache=False
        ).last_hidden_state
        return engine.hf.lm_head(hidden[0, -1]).float().log_softmax(-1)


def unpacked(data: str) -> torch.Tensor:
    return torch.load(io.BytesIO(base64.b64decode(data)), weights_only=True)


def as_seen(
    body: dict[str, Any],
) -> tuple[list[dict[str, Any]], list[torch.Tensor], Image.Image | dict[str, torch.Tensor]]:
    """What a template sees of a message, its vectors, and its image or the embeddings in the image's place."""
    content: list[dict[str, Any]] = []
    vectors: list[torch.Tensor] = []
    image: Any = None
    for part in body["messages"][0]["content"]:
        if part["type"] == "text":
            content.append(part)
        elif part["type"] == "prompt_embeds":
            vectors.append(unpacked(part["data"]))
            content.append({"type": "text", "text": VECTORS})
        else:
            content.append({"type": "image"})
            if part["type"] == "image_url":
                data = part["image_url"]["url"].removeprefix("data:image/png;base64,")
                image = Image.open(io.BytesIO(base64.b64decode(data)))
            else:
                image = {name: unpacked(value) for name, value in part["image_embeds"].items()}
    return content, vectors, image


def ours(adapter, family: str, picture: Image.Image, task: str | None = None) -> torch.Tensor:
    masp = Masp.from_pretrained(adapter, str(tiny.checkpoint(family)), dtype="float32", task=task)
    visual = masp.backbone.visual_tokens(masp.backbone.preprocess([picture]))
    return first_word(masp.model, masp.model.build_inputs(visual, [masp.task.question], use=masp.task.use))[0]


def engine_of(folder, kind=Engine) -> Any:
    return kind(vllm_config=SimpleNamespace(model_config=SimpleNamespace(model=str(folder))))


PICTURE = tiny.picture(150, 93)


@pytest.mark.parametrize(
    ("family", "aspects", "send_visual"),
    [
        ("qwen2_vl", ("scene", "brightness"), False),
        ("qwen2_vl", (), True),
        ("qwen2_5_vl", ("scene", "brightness"), True),
    ],
)
def test_what_the_client_sends_gives_our_log_probabilities(tmp_path, family, aspects, send_visual):
    adapter = write_adapter(tmp_path / "a", family=family, aspects=aspects)
    place = str(tiny.checkpoint(family))
    folder = export_vllm(adapter, tmp_path / "out", place)
    client = VllmClient(folder, place, "http://nowhere", send_visual=send_visual, dtype="float32", device="cpu")
    content, vectors, image = as_seen(client.request(PICTURE))
    engine, backbone = engine_of(place), tiny.backbone(family)
    if isinstance(image, dict):
        grid, embeds = image["image_grid_thw"], image["image_embeds"]
        assert grid.ndim == 1
    else:
        pixels = backbone.preprocess([image])
        grid = pixels.grid[0]
        (embeds,) = engine.embed_multimodal(pixel_values=pixels.values, image_grid_thw=pixels.grid)
    pad = [backbone.special_ids(["<|image_pad|>"])[0]] * len(embeds)
    served = tmp_path / "served"  # vLLM serves the backbone; only the template is ours
    served.mkdir()
    for file in (*tiny.checkpoint(family).iterdir(), folder / "masp_template.jinja"):
        if file.is_file():
            (served / file.name).write_bytes(file.read_bytes())
    found = log_p(engine, served, content, vectors, pad, grid, embeds)
    expected = ours(adapter, family, PICTURE)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    changed = log_p(engine, served, content, [2 * v for v in vectors], pad, grid, embeds)
    assert (changed - expected).abs().max() > 1e-3


@pytest.mark.parametrize(("family", "places"), [("qwen2_vl", "both"), ("qwen2_5_vl", "after_image")])
def test_the_plugin_computes_our_log_probabilities_inside_the_engine(tmp_path, family, places):
    adapter = write_adapter(tmp_path / "a", family=family, aspects=("object", "scene", "human_action"))
    if places == "both":
        described = json.loads((adapter / "adapter.json").read_text())
        described["method"]["prompt_places"] = "both"
        (adapter / "adapter.json").write_text(json.dumps(described))
    folder = export_vllm(adapter, tmp_path / "out", str(tiny.checkpoint(family)), model=True)
    engine = engine_of(folder, vllm_plugin.with_aspects(Engine))
    backbone = tiny.backbone(family)
    pixels = backbone.preprocess([PICTURE])
    (embeds,) = engine.embed_multimodal(pixel_values=pixels.values, image_grid_thw=pixels.grid)
    image = backbone.special_ids(["<|image_pad|>"])[0]
    kind = vllm_plugin.with_longer_images(Processor)
    longer, video = kind(str(folder), image, pixels.grid)._get_prompt_updates()
    placeholder = longer.replacement(0)
    assert placeholder == [image] * len(embeds)
    assert video.replacement(0) == [1, 2]
    content = [{"type": "image"}, {"type": "text", "text": "emotion"}]
    found = log_p(engine, folder, content, [], placeholder, pixels.grid[0], embeds)
    expected = ours(adapter, family, PICTURE)
    known = backbone.known_tokens  # spare rows hold the soft prompt now
    gap = (found[:known].log_softmax(-1) - expected[:known].log_softmax(-1)).abs().max()
    assert gap <= 1e-5 * expected.abs().max()
    with torch.no_grad():
        engine.masp_aspects.by_aspect["scene"].value.mul_(-1)
    (others,) = engine.embed_multimodal(pixel_values=pixels.values, image_grid_thw=pixels.grid)
    changed = log_p(engine, folder, content, [], placeholder, pixels.grid[0], others)
    assert (changed - found).abs().max() > 1e-4


def test_tasks_are_names_in_one_model(tmp_path):
    write_adapter(tmp_path / "a", labels=("joy", "fear", "awe"))
    write_adapter(tmp_path / "b", labels=("anger", "sadness"), seed=0)
    combine(tmp_path / "both", [f"first={tmp_path / 'a'}", f"second={tmp_path / 'b'}"])
    folder = export_vllm(tmp_path / "both", tmp_path / "out", str(tiny.checkpoint()), model=True)
    note = read_note(folder)
    assert {name: task["labels"] for name, task in note["tasks"].items()} == {
        "first": ["joy", "fear", "awe"],
        "second": ["anger", "sadness"],
    }
    engine, backbone = engine_of(folder, vllm_plugin.with_aspects(Engine)), tiny.backbone()
    pixels = backbone.preprocess([PICTURE])
    (embeds,) = engine.embed_multimodal(pixel_values=pixels.values, image_grid_thw=pixels.grid)
    pad = backbone.special_ids(["<|image_pad|>"]) * len(embeds)
    for name, task in note["tasks"].items():
        content = [{"type": "image"}, {"type": "text", "text": name}]
        found = log_p(engine, folder, content, [], pad, pixels.grid[0], embeds)
        expected = ours(tmp_path / "both", "qwen2_vl", PICTURE, name)
        chosen = list(task["first_ids"])
        assert found[chosen].log_softmax(-1) == pytest.approx(expected[chosen].log_softmax(-1), abs=1e-5)


def test_a_model_without_aspects_needs_no_class_of_ours(tmp_path):
    kinds = {}
    for name, aspects in (("with", ("scene",)), ("without", ())):
        write_adapter(tmp_path / name, aspects=aspects)
        folder = export_vllm(tmp_path / name, tmp_path / f"out-{name}", str(tiny.checkpoint()), model=True)
        kinds[name] = json.loads((folder / "config.json").read_text())["architectures"]
    assert kinds == {"with": ["MaspQwen2VL"], "without": ["Qwen2VLForConditionalGeneration"]}


@pytest.mark.parametrize(("trained", "dtype"), [("float32", "float32"), ("bfloat16", "bfloat16")])
def test_a_prompt_is_served_in_the_format_it_was_trained_in(tmp_path, trained, dtype):
    half = tmp_path / "half"
    AutoModelForImageTextToText.from_pretrained(tiny.checkpoint(), dtype=torch.bfloat16).save_pretrained(half)
    for file in tiny.checkpoint().iterdir():
        if not (half / file.name).exists() and file.suffix != ".safetensors":
            (half / file.name).write_bytes(file.read_bytes())
    adapter = write_adapter(tmp_path / "a", backbone=load_backbone(str(half), dtype="float32"))
    described = json.loads((adapter / "adapter.json").read_text())
    record = {"learning_rate": 1, "schedule": "cosine", "warmup": 0, "weight_decay": 0, "steps": 1, "batch_size": 1}
    described["training"] = {"prompt": record | {"class_weights": "none", "dtype": trained}}
    (adapter / "adapter.json").write_text(json.dumps(described))
    for model in (False, True):
        note = read_note(export_vllm(adapter, tmp_path / f"out-{model}", str(half), model=model))
        assert note["dtype"] == dtype
        assert ("--dtype" in note["command"]) == (dtype == "float32")
    _, vectors = read_prompt(adapter)
    (file,) = (tmp_path / "out-True").glob("*.safetensors")
    rows = next(value for name, value in load_file(file).items() if name.endswith("embed_tokens.weight"))
    assert rows.dtype == getattr(torch, dtype)
    first = tiny.backbone().known_tokens
    assert torch.equal(rows[first : first + len(vectors)].float(), vectors) == (dtype == "float32")


def test_videos_and_other_versions_are_refused(tmp_path, monkeypatch):
    write_adapter(tmp_path / "a")
    folder = export_vllm(tmp_path / "a", tmp_path / "out", str(tiny.checkpoint()), model=True)
    engine = engine_of(folder, vllm_plugin.with_aspects(Engine))
    with pytest.raises(ValueError, match="read images only"):
        engine.embed_multimodal(pixel_values_videos=torch.zeros(1))
    own = {f"masp_aspects.{name}" for name, _ in engine.masp_aspects.named_parameters()}
    assert engine.load_weights([("x", torch.zeros(1))]) == own | {"x"}
    monkeypatch.setattr(vllm_plugin, "import_module", lambda _: SimpleNamespace(__version__="0.40.1"))
    with pytest.raises(UsageError, match=r"vLLM 0\.40\.1"):
        vllm_plugin.register()


@pytest.mark.parametrize("version", ["0.32.0", "0.33.2", "0.33.0.post1", "0.33.0+cu129", "0.33.1rc1.dev3+gabc"])
def test_the_entry_point_registers_lazily(monkeypatch, version):
    registered = {}
    registry = SimpleNamespace(register_model=registered.__setitem__)
    fake = SimpleNamespace(ModelRegistry=registry, __version__=version)
    monkeypatch.setattr(vllm_plugin, "import_module", lambda _: fake)
    vllm_plugin.register()
    home = "masp.serving.vllm_plugin"
    assert registered == {"MaspQwen2VL": f"{home}:MaspQwen2VL", "MaspQwen2_5_VL": f"{home}:MaspQwen2_5_VL"}
    with pytest.raises(AttributeError, match="no attribute 'Other'"):
        _ = vllm_plugin.Other


def test_a_class_is_built_on_vllms_and_has_our_processor(monkeypatch):
    info = type("Info", (), {"get_num_image_tokens": lambda self, **_: 5})
    names = {
        "Qwen2VLMultiModalProcessor": Processor,
        "Qwen2VLProcessingInfo": info,
        "Qwen2VLDummyInputsBuilder": object,
    }
    given = {}

    def register_processor(processor: Any, *, info: Any, dummy_inputs: Any) -> Any:
        given.update(processor=processor, info=info, dummy=dummy_inputs)
        return lambda built: built

    modules = {
        "vllm.model_executor.models.qwen2_vl": SimpleNamespace(Qwen2VLForConditionalGeneration=Engine, **names),
        "vllm.multimodal": SimpleNamespace(MULTIMODAL_REGISTRY=SimpleNamespace(register_processor=register_processor)),
    }
    monkeypatch.setattr(vllm_plugin, "import_module", modules.__getitem__)
    built = vllm_plugin.__getattr__("MaspQwen2VL")
    monkeypatch.delitem(vars(vllm_plugin), "MaspQwen2VL")
    assert issubclass(built, Engine)
    assert issubclass(given["processor"], Processor)
    monkeypatch.setattr(vllm_plugin, "aspect_count", lambda folder: 7)
    one = given["info"]()
    one.ctx = SimpleNamespace(model_config=SimpleNamespace(model="x"))
    assert one.get_num_image_tokens() == 12


# --- the client and its server --------------------------------------------------------------------------------------


@pytest.fixture
def server():
    """A server whose answer is set by the test; it keeps what it was sent."""
    state = SimpleNamespace(status=200, answer={}, bodies=[], headers=[])

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            state.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            state.headers.append(dict(self.headers))
            self.send_response(state.status)
            self.end_headers()
            self.wfile.write(json.dumps(state.answer).encode())

        def log_message(self, format: str, *args: Any) -> None:
            return

    http = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    state.url = f"http://127.0.0.1:{http.server_port}"
    yield state
    http.shutdown()
    http.server_close()


def test_the_client_reads_the_labels_of_an_answer(tmp_path, server):
    write_adapter(tmp_path / "a")
    place = str(tiny.checkpoint())
    folder = export_vllm(tmp_path / "a", tmp_path / "out", place)
    client = VllmClient(folder, place, server.url, api_key="secret", device="cpu")
    ids = read_note(folder)["tasks"]["emotion"]["first_ids"]
    listed = [{"token": f"token_id:{token}", "logprob": value} for token, value in zip(ids, (-1, -2, -3), strict=True)]
    server.answer = {"choices": [{"logprobs": {"content": [{"top_logprobs": listed}]}}]}
    PICTURE.save(tmp_path / "picture.png")
    assert client.log_probabilities(tmp_path / "picture.png") == {"joy": -1, "fear": -2, "awe": -3}
    shares = client.predict(PICTURE)
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["joy"] / shares["fear"] == pytest.approx(2.718281828)
    assert server.bodies[0]["logprob_token_ids"] == list(ids)
    assert server.headers[0]["Authorization"] == "Bearer secret"
    server.answer = {"choices": [{"logprobs": None}]}
    with pytest.raises(EngineError, match="lacks the labels' log-probabilities"):
        client.predict(PICTURE)
    server.status = 400
    with pytest.raises(EngineError, match="answered 400"):
        client.predict(PICTURE)
    nowhere = VllmClient(folder, place, "http://127.0.0.1:1", device="cpu")
    with pytest.raises(EngineError, match="does not answer"):
        nowhere.predict(PICTURE)
    with pytest.raises(UsageError, match="the task emotions"):
        client.predict(PICTURE, "emotions")


def test_the_tower_alone_is_the_backbones(tmp_path):
    for family in tiny.QWEN:
        backbone = tiny.backbone(family)
        vision = load_vision(find(str(tiny.checkpoint(family))), torch.float32, torch.device("cpu"))
        pixels = backbone.preprocess([PICTURE, tiny.picture(60, 60)])
        assert torch.equal(vision.visual_tokens(pixels).tokens, backbone.visual_tokens(pixels).tokens)
    with pytest.raises(BackboneError, match="family 'llava'"):
        load_vision(find(str(tiny.checkpoint("llava"))), torch.float32, torch.device("cpu"))


# --- refusals -------------------------------------------------------------------------------------------------------


def test_what_vllm_cannot_serve_is_refused(tmp_path):
    place = str(tiny.checkpoint())
    write_adapter(tmp_path / "bare", include_aspects=False)
    with pytest.raises(AdapterError, match="holds no aspect modules"):
        export_vllm(tmp_path / "bare", tmp_path / "out", place)
    write_adapter(tmp_path / "no prompt", prompt=False)
    with pytest.raises(AdapterError, match="has no soft prompt"):
        export_vllm(tmp_path / "no prompt", tmp_path / "out", place)
    write_adapter(tmp_path / "twins", labels=("joy", "joy of life"))
    with pytest.raises(AdapterError, match="begin with the same token"):
        export_vllm(tmp_path / "twins", tmp_path / "out", place)
    write_adapter(tmp_path / "llava", family="llava")
    with pytest.raises(BackboneError, match="family 'llava'"):
        export_vllm(tmp_path / "llava", tmp_path / "out", str(tiny.checkpoint("llava")))
    write_adapter(tmp_path / "a")
    with pytest.raises(AdapterError, match="was trained on"):
        export_vllm(tmp_path / "a", tmp_path / "out", str(tiny.checkpoint("qwen2_5_vl")))
    assert not (tmp_path / "out").exists()
    folder = export_vllm(tmp_path / "a", tmp_path / "out", place)
    with pytest.raises(UsageError, match="another backbone"):
        VllmClient(folder, str(tiny.checkpoint("qwen2_5_vl")), "http://nowhere")
    with pytest.raises(AdapterError, match="a folder that masp exported"):
        read_note(tmp_path)


def test_the_command(tmp_path, masp):
    adapter = write_adapter(tmp_path / "a")
    described = json.loads((adapter / "adapter.json").read_text())
    described["image_transform"] = {"min_pixels": 784, "max_pixels": 50_000}
    (adapter / "adapter.json").write_text(json.dumps(described))
    words = ["export", "--as", "vllm", "--adapter", str(tmp_path / "a"), "--backbone", str(tiny.checkpoint())]
    code, out, err = masp(*words, "--out", tmp_path / "out")
    assert (code, out) == (0, f"{tmp_path / 'out'}\n"), err
    command = read_note(tmp_path / "out")["command"]
    assert {"--enable-prompt-embeds", "--enable-mm-embeds"} <= set(command)
    assert json.loads(command[command.index("--mm-processor-kwargs") + 1]) == described["image_transform"]
    assert str(tmp_path) not in (tmp_path / "out" / "README.md").read_text()
    assert masp(*words, "--out", tmp_path / "other", "--task", "x")[0] == 2
