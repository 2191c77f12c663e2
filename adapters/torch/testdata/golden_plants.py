"""Trains plants/jumprelu: a batch top-k SAE, saved as jumprelu, on the tiny Llama's residual stream, in which a test plants mistakes.

The text is random tokens behind BOS; the input is layer-normed. torch 2.7.1, transformers 4.56.2, sae-lens 6.54.0.
Run in this folder: python golden_plants.py
"""

import shutil

import torch
from sae_lens import JumpReLUSAE, JumpReLUSAEConfig
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

HOOK_LAYER, D_IN, D_SAE, K, BOS = 1, 32, 160, 6, 1


def main():
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained("llama-tied", dtype=torch.float32).eval()
    ids = torch.randint(0, 97, (600, 48))
    ids[:, 0] = BOS
    with torch.no_grad():
        x = model(ids, output_hidden_states=True).hidden_states[HOOK_LAYER + 1][:, 1:].reshape(-1, D_IN)
    u = (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 1e-5)

    b_dec = u.mean(0).clone().requires_grad_()
    w_dec = torch.nn.functional.normalize(torch.randn(D_SAE, D_IN), dim=1).requires_grad_()
    w_enc = w_dec.detach().T.clone().requires_grad_()
    b_enc = torch.zeros(D_SAE, requires_grad=True)
    optimizer = torch.optim.Adam([w_enc, b_enc, w_dec, b_dec], lr=3e-3)
    threshold = 0.0
    for step in range(4000):
        batch = u[torch.randint(0, len(u), (512,))]
        z = torch.relu((batch - b_dec) @ w_enc + b_enc)
        least = z.flatten().topk(K * len(batch)).values[-1].item()
        acts = z * (z >= least)
        loss = (acts @ w_dec + b_dec - batch).pow(2).sum(-1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            w_dec.div_(w_dec.norm(dim=1, keepdim=True))
        threshold = least if step == 0 else 0.99 * threshold + 0.01 * least

    sae = JumpReLUSAE(JumpReLUSAEConfig(d_in=D_IN, d_sae=D_SAE, dtype="float32", device="cpu", normalize_activations="layer_norm"))
    with torch.no_grad():
        for name, value in {"W_enc": w_enc, "b_enc": b_enc, "W_dec": w_dec, "b_dec": b_dec, "threshold": torch.full((D_SAE,), threshold)}.items():
            getattr(sae, name).copy_(value)
        acts = sae.encode(x)
        fvu = (sae(x) - x).pow(2).sum() / (x - x.mean(0)).pow(2).sum()
    sae.cfg.metadata.hook_name = f"blocks.{HOOK_LAYER}.hook_resid_post"
    sae.cfg.metadata.prepend_bos = True
    shutil.rmtree("plants/jumprelu", ignore_errors=True)
    sae.save_model("plants/jumprelu")
    save_file({"sparsity": torch.log10((acts > 0).float().mean(0) + 1e-10)}, "plants/jumprelu/sparsity.safetensors")
    print(f"FVU {fvu:.3f}, L0 {(acts > 0).float().sum(-1).mean():.2f}, dead {(acts > 0).any(0).logical_not().float().mean():.2f}, threshold {threshold:.3f}")


if __name__ == "__main__":
    main()
