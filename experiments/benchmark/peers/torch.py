"""PyTorch: its recurrent layers run eagerly, batch first, as nearly everybody uses them."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from experiments.benchmark.inputs import IDS, cell_weights
from experiments.benchmark.peers import LEARNING_RATE, Peer
from experiments.benchmark.workloads import Workload

_DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
_LAYERS = {"simple_rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}


class _Classifier(nn.Module):
    """Logits of the last step's output."""

    def __init__(self, workload: Workload):
        super().__init__()
        w = workload
        kind = _LAYERS[w.cell]
        self.rnn = kind(w.input_size, w.hidden_size, num_layers=w.num_layers, batch_first=True)
        self.output = nn.Linear(w.hidden_size, w.num_classes)

    def forward(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        outputs, _ = self.rnn(batch["inputs"])
        return self.output(outputs[:, -1])


class _Seq2Seq(nn.Module):
    """Logits at every step of a decoder that starts from the encoder's state."""

    def __init__(self, workload: Workload):
        super().__init__()
        w = workload
        kind = _LAYERS[w.cell]
        self.source_embed = nn.Embedding(w.num_classes, w.input_size)
        self.target_embed = nn.Embedding(w.num_classes, w.input_size)
        self.encoder = kind(w.input_size, w.hidden_size, batch_first=True)
        self.decoder = kind(w.input_size, w.hidden_size, batch_first=True)
        self.output = nn.Linear(w.hidden_size, w.num_classes)

    def forward(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        _, state = self.encoder(self.source_embed(batch["source"]))
        outputs, _ = self.decoder(self.target_embed(batch["inputs"]), state)
        return self.output(outputs)

    @torch.inference_mode()
    def generate(self, source: torch.Tensor, length: int) -> torch.Tensor:
        """The most probable tokens, one by one."""
        _, state = self.encoder(self.source_embed(source))
        token = torch.full((len(source), 1), IDS.bos_id, device=_DEVICE)
        tokens = []
        for _ in range(length):
            outputs, state = self.decoder(self.target_embed(token), state)
            token = self.output(outputs).argmax(-1)
            tokens.append(token)
        return torch.cat(tokens, dim=1)


def build(
    workload: Workload,
    weights: dict[str, np.ndarray],
    batches: list[dict[str, np.ndarray]],
) -> Peer:
    """Returns the peer after its first step."""
    model = _Classifier(workload) if workload.kind == "classifier" else _Seq2Seq(workload)
    model.load_state_dict(_state_dict(workload, weights))
    model.to(_DEVICE)
    data = [{key: _tensor(x) for key, x in batch.items()} for batch in batches]
    if isinstance(model, _Seq2Seq) and workload.kind == "decode":
        return _decoder(model, data, workload.target_length)
    optimizer = torch.optim.Adam(model.parameters(), LEARNING_RATE)

    def train_step(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        optimizer.zero_grad()
        logits = model(batch).flatten(0, -2)
        loss = nn.functional.cross_entropy(logits, batch["labels"].flatten())
        loss.backward()
        optimizer.step()
        return loss

    def run(num_steps: int) -> None:
        for _ in range(num_steps):
            for batch in data:
                loss = train_step(batch)
        loss.item()  # waits for the device

    return Peer(train_step(data[0]).item(), run)


def _decoder(model: _Seq2Seq, data: list[dict[str, torch.Tensor]], length: int) -> Peer:
    def run(num_steps: int) -> None:
        for _ in range(num_steps):
            for batch in data:
                tokens = model.generate(batch["source"], length)
        tokens.cpu()  # waits for the device

    return Peer(model.generate(data[0]["source"], length).cpu().numpy(), run)


def _tensor(array: np.ndarray) -> torch.Tensor:
    """Ids and labels are int64, as its embeddings and losses want them."""
    array = array if array.dtype == np.float32 else array.astype(np.int64)
    return torch.from_numpy(array).to(_DEVICE)


def _state_dict(workload: Workload, weights: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """Our weights under its names: the same gate orders, but kernels transposed, two biases."""
    found = {"output.weight": weights["output.kernel"].T, "output.bias": weights["output.bias"]}
    if workload.kind == "classifier":
        places = {f"layer_{i}": ("rnn", i) for i in range(workload.num_layers)}
    else:
        places = {side: (side, 0) for side in ("encoder", "decoder")}
        found |= {f"{x}.weight": weights[x] for x in ("source_embed", "target_embed")}
    for name, (layer, number) in places.items():
        cell = cell_weights(weights, name)
        found |= {
            f"{layer}.weight_ih_l{number}": cell["w_x"].T,
            f"{layer}.weight_hh_l{number}": cell["w_h"].T,
            f"{layer}.bias_ih_l{number}": cell["b_x"] if "b_x" in cell else cell["b"],
            f"{layer}.bias_hh_l{number}": cell.get("b_h", np.zeros_like(cell["w_h"][0])),
        }
    return {name: torch.from_numpy(np.array(x, order="C")) for name, x in found.items()}
