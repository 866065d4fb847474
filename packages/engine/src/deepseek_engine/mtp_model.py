"""A model that guesses its own next tokens: TorchModel with a layer for multi-token prediction behind it.

A step fills the layer's cache for the tokens that it computes, prompts as well as drafts, whether or not anyone will
guess from there: that is a product a token and no attention. Guesses are asked for before the next step, when the last
token is known.

T tokens of the step, B sequences, H hidden_size, V vocab_size.
"""

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from deepseek_engine.hidden_tails import HiddenTails
from deepseek_engine.kernels.torch_attention import AttentionMetadata
from deepseek_engine.kv_cache.pool import KVCache
from deepseek_engine.lora.appliers import LayerApplier
from deepseek_engine.models.mtp import MtpLayer
from deepseek_engine.models.transformer import Transformer
from deepseek_engine.sequence import ScheduledSequence, Sequence
from deepseek_engine.step_inputs import StepInputs, group_decodes, prepare_step
from deepseek_engine.step_model import TorchModel


class MtpModel(TorchModel):
    """See `StepModel` and `Drafter`.

    Args:
        model: with its MTP layer.
        cache: whose last layer is that one's.
        tails: for as many blocks.
        applier: of adapters; guesses are made without them.
    """

    def __init__(
        self, model: Transformer, cache: KVCache, tails: HiddenTails, applier: LayerApplier | None = None
    ) -> None:
        super().__init__(model, cache, applier)
        assert model.mtp is not None
        self._mtp: MtpLayer = model.mtp
        self._mtp_cache = cache.layer(len(model.layers))
        self._tails = tails

    def hidden(self, batch: Seq[ScheduledSequence]) -> Tensor:
        """See `StepModel`."""
        model = self.transformer
        inputs = prepare_step(batch, self.cache.block_size, model.embedding.dtype)
        if self.applier is not None:
            self.applier.set_rows(inputs.owners)
        states_TH = model.states(inputs.token_ids_T, inputs.positions_T, self.cache, inputs.metadata)
        hidden_TH = model.norm(states_TH)
        self._fill(inputs, hidden_TH)
        return hidden_TH.index_select(0, inputs.rows_R)

    @torch.inference_mode()
    def draft(self, wanted: Seq[tuple[Sequence, int]]) -> list[list[int]]:
        """See `Drafter`: the likeliest token each time, and the layer's own output in place of the model's."""
        guesses: list[list[int]] = [[] for _ in wanted]
        active = [index for index, (_, count) in enumerate(wanted) if count > 0]
        hidden_BH = self._states_before_last([wanted[index][0] for index in active])
        for number in range(1, max((count for _, count in wanted), default=0) + 1):
            sequences = [wanted[index][0] for index in active]
            token_ids = [(guesses[index] or wanted[index][0].token_ids)[-1] for index in active]
            hidden_BH, logits_BV = self._guess(sequences, token_ids, number - 1, hidden_BH)
            likeliest = cast("list[int]", logits_BV.argmax(dim=-1).tolist())
            for index, token_id in zip(active, likeliest, strict=True):
                guesses[index].append(token_id)
            goes_on = [row for row, index in enumerate(active) if wanted[index][1] > number]
            active, hidden_BH = [active[row] for row in goes_on], hidden_BH[goes_on]
        return guesses

    @torch.inference_mode()
    def draft_logits(self, sequences: Seq[Sequence]) -> Tensor:
        """What the first guesses are chosen by, float32 [B, V]."""
        hidden_BH = self._states_before_last(sequences)
        return self._guess(sequences, [sequence.token_ids[-1] for sequence in sequences], 0, hidden_BH)[1]

    def _states_before_last(self, sequences: Seq[Sequence]) -> Tensor:
        tails = self._tails
        return tails.read([tails.place(each.block_table, len(each.token_ids) - 2) for each in sequences])

    def _guess(
        self, sequences: Seq[Sequence], token_ids: list[int], num_behind: int, hidden_BH: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The token after the one `num_behind` places behind each sequence's last: the layer's output, and logits.

        Args:
            sequences: with blocks for that place.
            token_ids: in that place.
            num_behind: 0 is the sequence's own last token.
            hidden_BH: of the place before.
        """
        model = self.transformer
        contexts = np.array([len(sequence.token_ids) + num_behind for sequence in sequences])
        tables = [sequence.block_table for sequence in sequences]
        group, slots = group_decodes(tables, contexts, 0, self.cache.block_size, model.embedding.dtype)
        group.mask[..., 0] = float("-inf")  # position 0 has nothing before it
        metadata = AttentionMetadata(torch.from_numpy(slots), (group,), ())
        embedding_BH = F.embedding(torch.tensor(token_ids), model.embedding)
        cos_sin = model.cos_sin.index_select(0, torch.from_numpy(contexts - 1))
        guessed_BH = self._mtp(embedding_BH, hidden_BH, cos_sin, self._mtp_cache, metadata)
        return guessed_BH, model.logits(guessed_BH)

    def _fill(self, inputs: StepInputs, hidden_TH: Tensor) -> None:
        """Bring the layer's cache and the tails up to what the step has computed."""
        model, plan = self.transformer, self._plan(inputs)
        before_TH = hidden_TH.roll(1, 0)
        before_TH[plan.begin_rows] = self._tails.read(plan.begin_places)
        before_TH[plan.draft_rows] = hidden_TH[plan.rows_before_drafts]
        self._tails.write(plan.kept_places, hidden_TH[plan.kept_rows])
        embedding_TH = F.embedding(inputs.token_ids_T, model.embedding)
        cos_sin = model.cos_sin.index_select(0, inputs.positions_T)
        self._mtp.fill(embedding_TH, before_TH, cos_sin, self._mtp_cache, inputs.metadata.slot_mapping_T)

    def _plan(self, inputs: StepInputs) -> "_Plan":
        tails, plan = self._tails, _Plan()
        last_row: dict[int, int] = {}
        positions = cast("list[int]", inputs.positions_T.tolist())
        row = 0
        for sequence, count in inputs.owners:
            begin, table = positions[row], sequence.block_table
            if (before := last_row.get(id(sequence))) is not None:
                plan.draft_rows.append(row)
                plan.rows_before_drafts.append(before)
            elif begin > 0:  # what is written at position 0 is never read
                plan.begin_rows.append(row)
                plan.begin_places.append(tails.place(table, begin - 1))
            for position in tails.last_positions(begin, begin + count):
                plan.kept_rows.append(row + position - begin)
                plan.kept_places.append(tails.place(table, position))
            row += count
            last_row[id(sequence)] = row - 1
        return plan


@dataclass(slots=True)
class _Plan:
    """Which hidden states a step's rows need that are not in the row before, and which of its own it leaves behind.

    Attributes:
        begin_rows: the first of each sequence, unless it begins there.
        begin_places: among the tails, of the states before them.
        draft_rows: a draft's, each computed by itself.
        rows_before_drafts: of the tokens before them.
        kept_rows: whose states go to the tails.
        kept_places: and where.
    """

    begin_rows: list[int] = field(default_factory=list[int])
    begin_places: list[int] = field(default_factory=list[int])
    draft_rows: list[int] = field(default_factory=list[int])
    rows_before_drafts: list[int] = field(default_factory=list[int])
    kept_rows: list[int] = field(default_factory=list[int])
    kept_places: list[int] = field(default_factory=list[int])
