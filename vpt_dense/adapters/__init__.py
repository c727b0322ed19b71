"""Adapters: objects that change what the blocks of a backbone compute. One file a method."""

from vpt_dense.adapters.adaptformer import AdaptFormer
from vpt_dense.adapters.add_prompt import AddPrompt
from vpt_dense.adapters.base import Adapter, Block, Change, merge_adapters
from vpt_dense.adapters.bi_lora import BiLoRA
from vpt_dense.adapters.bottleneck import BottleneckAdapter
from vpt_dense.adapters.convpass import Convpass
from vpt_dense.adapters.cvpt import CVPT
from vpt_dense.adapters.dora import DoRA
from vpt_dense.adapters.fact import FacT
from vpt_dense.adapters.glora import GLoRA
from vpt_dense.adapters.lora import LoRA
from vpt_dense.adapters.mona import Mona
from vpt_dense.adapters.mtlora import MTLoRA
from vpt_dense.adapters.peft import PEFT
from vpt_dense.adapters.pissa import PiSSA
from vpt_dense.adapters.rein import Rein
from vpt_dense.adapters.rep_adapter import RepAdapter
from vpt_dense.adapters.side_network import SideNetwork
from vpt_dense.adapters.soma import SoMA
from vpt_dense.adapters.sparse_update import SparseUpdate
from vpt_dense.adapters.ssf import SSF
from vpt_dense.adapters.vera import VeRA
from vpt_dense.adapters.vit_split import ViTSplit

__all__ = [
    'CVPT', 'PEFT', 'SSF', 'AdaptFormer', 'Adapter', 'AddPrompt', 'BiLoRA', 'Block',
    'BottleneckAdapter', 'Change', 'Convpass', 'DoRA', 'FacT', 'GLoRA', 'LoRA', 'MTLoRA', 'Mona',
    'PiSSA', 'Rein', 'RepAdapter', 'SideNetwork', 'SoMA', 'SparseUpdate', 'VeRA', 'ViTSplit',
    'merge_adapters',
]
