"""Two backward passes under accelerate; saves the gradients of the second: python ... GRADIENTS.pt PROCESSES."""

import sys

import torch
from accelerate import Accelerator

from deepencoder import DeepEncoder, DeepEncoderConfig

torch.manual_seed(0)
torch.set_num_threads(1)
model = DeepEncoder(DeepEncoderConfig.tiny())
pixels, tiles = torch.randn(4, 3, 128, 128), torch.randn(8, 3, 64, 64)
accelerator = Accelerator(cpu=True)
count, rank = accelerator.num_processes, accelerator.process_index
model = accelerator.prepare(model)
mine = slice(rank * 4 // count, (rank + 1) * 4 // count)
my_tiles = slice(mine.start * 2, mine.stop * 2)
# DDP fails in the second backward pass if a parameter took no part in the first.
for _step in range(2):
    model.zero_grad()
    output = model(pixels[mine], tiles[my_tiles], patches_grid=[(2, 1)] * (mine.stop - mine.start))
    loss = torch.stack([tokens.square().mean() for tokens in output.vision_tokens]).mean()
    loss = loss + output.pooler_output.square().mean()
    accelerator.backward(loss)
assert count == int(sys.argv[2]), count
if accelerator.is_main_process:
    plain = accelerator.unwrap_model(model)
    torch.save({name: parameter.grad for name, parameter in plain.named_parameters()}, sys.argv[1])
accelerator.wait_for_everyone()  # A process that ends before the other has saved may abort.
accelerator.end_training()
