#!/usr/bin/python3
r"""The training steps of both stages, written plainly in PyTorch: a second opinion on losses, and a peer for speed.

Needs python3-torch of the distribution and nothing else; run it with /usr/bin/python3. The network follows the
specification as src/model does (Mamba-2 mixer in its dual form over one chunk, adaLN per layer or in groups, two RMS
norms at the end, tied head); nothing is shared with the C code but the names of the tensors.

Speed, beside build/bench/bench_train with the same sizes; a step is forward, loss and backward, and AdamW is timed apart:

    tools/peer_train.py speed-ar  [--width 768 --layers 2 --vocab 16384 --tokens 256 --batch 4] [--bf16]
    tools/peer_train.py speed-vq  [--side 128 --batch 1]
    tools/peer_train.py --threads 2 --repeat 5 speed-ar

A whole step of stage 1 with PatchGAN and both optimisers, beside build/bench/bench_profile with the same network and batch; on
a GPU with PyTorch 2 as fast as plain PyTorch goes: bf16 autocast, channels_last, its attention, fused AdamW, cuDNN's search:

    tools/peer_train.py speed-gan --device cuda --network VQ-f16|demo --batch 16 --side 256 --bf16

Losses, to lay beside log.jsonl of the same run of ours,

    aim train ar --init DIR --codes codes.npy --labels labels.npy --order file --val 0 --label-drop 0 \
        --steps 200 --batch 8 --lr 1e-3 -o RUN

    tools/peer_train.py curve --init DIR --codes codes.npy --labels labels.npy --steps 200 --batch 8 --lr 1e-3

prints a line "step loss lr grad_norm" for each step, the loss before the step's update, step counting from 1.

  --init DIR      a model folder in the hub format (config.json is not needed: sizes are read off model.safetensors)
  --codes         integers (n, T), one picture a row; --labels: (n). Types are converted.
  order           row i of batch s (from 0) is row (s * batch + i) % n of the files. No shuffling.
  label drop      none; or --dropped FILE.npy, (steps * batch) of 0 and 1 in the order of consumption: 1 trains the null class
  optimiser       AdamW, betas 0.9 and 0.95, eps 1e-8; decay (default 0.05) for tensors of two and more dimensions only, or
                  for none with --official-decay; the decay is decoupled: w -= lr * decay * w
  clipping        gradients scaled to a global norm of --clip (1.0; 0: not at all); grad_norm is printed before
  schedule        --schedule linear: lr * (1 - step / steps), the first step at the full rate; or constant
  --bf16          products with inputs rounded to bf16 (autocast); everything else float32
"""
import argparse
import json
import math
import os
import statistics
import struct
import time

import torch
import torch.nn.functional as F

try:
    import numpy as np
except ImportError:  # it is for reading files alone
    np = None

HEADDIM, EPS = 64, 1e-5


# --------------------------------------------------------------------------------------------------- files


def read_safetensors(path):
    """Name to float32 tensor, for F32, F16 and BF16."""
    with open(path, "rb") as f:
        (size,) = struct.unpack("<Q", f.read(8))
        header = json.loads(f.read(size))
        data = f.read()
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        raw = data[begin:end]
        if entry["dtype"] == "BF16":
            values = (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)
        else:
            values = np.frombuffer(raw, {"F32": "<f4", "F16": "<f2"}[entry["dtype"]]).astype(np.float32)
        tensors[name] = torch.from_numpy(values.reshape(entry["shape"]).copy())
    return tensors


def stage2_of(tensors):
    """The tensors of stage 2 without their prefix and without the head, which is the embedding."""
    found = {n[len("mamba."):]: t for n, t in tensors.items() if n.startswith("mamba.")}
    found = found or {n: t for n, t in tensors.items() if n.startswith("backbone.")}
    found.pop("lm_head.weight", None)
    return {n: t.requires_grad_() for n, t in found.items()}


# ------------------------------------------------------------------------------------------------- stage 2


def stage2_new(width, layers, vocab, tokens, classes=1000, state=128):
    """A per-layer adaLN model with random weights; the modulation is random too, so that no gradient is zero."""
    inner, heads = 2 * width, 2 * width // HEADDIM
    conv = inner + 2 * state

    def normal(*shape, scale=0.02):
        return torch.randn(*shape) * scale

    p = {
        "backbone.embeddings.word_embeddings.weight": normal(vocab, width),
        "backbone.embeddings.position_embeddings.weight": normal(tokens + 1, width),
        "backbone.cls_embed.embedding_table.weight": normal(classes + 1, width),
        "backbone.final_layer.norm_final.weight": torch.ones(width),
        "backbone.final_layer.adaLN_modulation.1.weight": normal(2 * width, width),
        "backbone.final_layer.adaLN_modulation.1.bias": torch.zeros(2 * width),
        "backbone.norm_f.weight": torch.ones(width),
    }
    for i in range(layers):
        at = f"backbone.layers.{i}."
        dt = torch.exp(torch.rand(heads) * (math.log(0.1) - math.log(0.001)) + math.log(0.001))
        p[at + "norm.weight"] = torch.ones(width)
        p[at + "mixer.dt_bias"] = dt + torch.log(-torch.expm1(-dt))
        p[at + "mixer.A_log"] = torch.log(1 + 15 * torch.rand(heads))
        p[at + "mixer.D"] = torch.ones(heads)
        p[at + "mixer.in_proj.weight"] = normal(inner + conv + heads, width, scale=1 / math.sqrt(width))
        p[at + "mixer.conv1d.weight"] = normal(conv, 1, 4, scale=0.3)
        p[at + "mixer.conv1d.bias"] = normal(conv, scale=0.3)
        p[at + "mixer.norm.weight"] = torch.ones(inner)
        p[at + "mixer.out_proj.weight"] = normal(width, inner, scale=1 / math.sqrt(inner))
        p[at + "adaLN_modulation.1.weight"] = normal(3 * width, width)
        p[at + "adaLN_modulation.1.bias"] = torch.zeros(3 * width)
    return {n: t.requires_grad_() for n, t in p.items()}


def rms(x, w):
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPS) * w


def ssd(x, dt, A, B, C, D):
    """Dual form over one chunk: x (b,t,h,p), dt (b,t,h), B and C (b,t,n). y_l = sum_s (C_l.B_s) exp(cs_l - cs_s) dt_s x_s + D x_l."""
    T = x.shape[1]
    assert T <= 256, "one chunk only"
    cs = torch.cumsum(dt * A, 1).transpose(1, 2)  # (b,h,t)
    gap = cs[..., :, None] - cs[..., None, :]
    after = torch.ones(T, T, dtype=torch.bool).triu(1)
    decay = torch.exp(gap.masked_fill(after, -math.inf))
    m = torch.matmul(C, B.transpose(1, 2))[:, None] * decay  # (b,h,l,s)
    u = (x * dt[..., None]).transpose(1, 2)  # (b,h,t,p)
    return torch.matmul(m, u).transpose(1, 2) + D[:, None] * x


def mixer(p, at, m):
    inner, heads = p[at + "norm.weight"].numel(), p[at + "D"].numel()
    zxbcdt = F.linear(m, p[at + "in_proj.weight"]).float()
    channels = p[at + "conv1d.bias"].numel()
    z, xbc, dt = torch.split(zxbcdt, [inner, channels, heads], -1)
    a = F.conv1d(F.pad(xbc.transpose(1, 2), (3, 0)), p[at + "conv1d.weight"], p[at + "conv1d.bias"], groups=channels)
    state = (channels - inner) // 2
    x, B, C = torch.split(F.silu(a.float()).transpose(1, 2), [inner, state, state], -1)
    dt = F.softplus(dt + p[at + "dt_bias"])
    y = ssd(x.unflatten(-1, (heads, HEADDIM)), dt, -torch.exp(p[at + "A_log"]), B, C, p[at + "D"]).flatten(-2)
    return F.linear(rms(y.float() * F.silu(z), p[at + "norm.weight"]), p[at + "out_proj.weight"]).float()


def stage2_logits(p, labels, codes):
    """labels (b), codes (b,T) -> (b,T,V): row t predicts code t."""
    words = p["backbone.embeddings.word_embeddings.weight"]
    e = p["backbone.cls_embed.embedding_table.weight"][labels]
    T = codes.shape[1]
    rest = words[codes[:, :-1]] + p["backbone.embeddings.position_embeddings.weight"][: T - 1]
    r, h = torch.cat([e[:, None], rest], 1), None
    silu = F.silu(e)
    groups = None
    if "backbone.adaln_group.1.weight" in p:
        groups = F.linear(silu, p["backbone.adaln_group.1.weight"], p["backbone.adaln_group.1.bias"]).float()
        groups = groups.unflatten(-1, (-1, 3, e.shape[-1]))
    layers = 1 + max(int(n.split(".")[2]) for n in p if n.startswith("backbone.layers."))
    for i in range(layers):
        at = f"backbone.layers.{i}."
        if groups is not None:
            mod = p[at + "scale_shift_table"] + groups[:, i % groups.shape[1]]
        else:
            mod = F.linear(silu, p[at + "adaLN_modulation.1.weight"], p[at + "adaLN_modulation.1.bias"]).float()
            mod = mod.unflatten(-1, (3, -1))
        shift, scale, gate = mod[:, :, None].unbind(1)
        if h is not None:
            r = r + h
        h = gate * mixer(p, at + "mixer.", rms(r, p[at + "norm.weight"]) * (1 + scale) + shift)
    r = rms(rms(r + h, p["backbone.norm_f.weight"]), p["backbone.final_layer.norm_final.weight"])
    final = "backbone.final_layer.adaLN_modulation.1."
    shift, scale = F.linear(silu, p[final + "weight"], p[final + "bias"]).float()[:, None].chunk(2, -1)
    return F.linear(r * (1 + scale) + shift, words)


def stage2_loss(p, labels, codes, bf16):
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        logits = stage2_logits(p, labels, codes)
    return F.cross_entropy(logits.float().flatten(0, 1), codes.flatten())


def optimizer(p, lr, decay):
    plain = [t for t in p.values() if t.ndim < 2]
    decayed = [t for t in p.values() if t.ndim >= 2]
    return torch.optim.AdamW(
        [{"params": decayed, "weight_decay": decay}, {"params": plain, "weight_decay": 0.0}],
        lr=lr, betas=(0.9, 0.95), eps=1e-8)


# ------------------------------------------------------------------------------------------------- stage 1


class Res(torch.nn.Module):
    def __init__(self, i, o):
        super().__init__()
        self.norm1, self.conv1 = torch.nn.GroupNorm(32, i, 1e-6), torch.nn.Conv2d(i, o, 3, padding=1)
        self.norm2, self.conv2 = torch.nn.GroupNorm(32, o, 1e-6), torch.nn.Conv2d(o, o, 3, padding=1)
        self.short = torch.nn.Conv2d(i, o, 1) if i != o else torch.nn.Identity()

    def forward(self, x):
        h = self.conv1(F.silu(self.norm1(x)))
        return self.short(x) + self.conv2(F.silu(self.norm2(h)))


class Attn(torch.nn.Module):
    def __init__(self, c):
        super().__init__()
        self.norm = torch.nn.GroupNorm(32, c, 1e-6)
        self.q, self.k, self.v, self.out = (torch.nn.Conv2d(c, c, 1) for _ in range(4))

    def forward(self, x):
        n = self.norm(x)
        q, k, v = (f(n).flatten(2).transpose(1, 2) for f in (self.q, self.k, self.v))
        if hasattr(F, "scaled_dot_product_attention"):
            y = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]
        else:
            y = torch.softmax(q @ k.transpose(1, 2) * x.shape[1] ** -0.5, -1) @ v
        return x + self.out(y.transpose(1, 2).reshape(x.shape))


class Down(torch.nn.Module):
    def __init__(self, c):
        super().__init__()
        self.conv = torch.nn.Conv2d(c, c, 3, stride=2)

    def forward(self, x):
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Tokenizer(torch.nn.Module):
    """VQ-f16, or a narrower one of five levels."""

    def __init__(self, channels=128, blocks=2, latent=256, codes=16384):
        super().__init__()
        S, C, G = torch.nn.Sequential, torch.nn.Conv2d, torch.nn.GroupNorm
        width, last = [channels * m for m in (1, 1, 2, 2, 4)], 4 * channels
        enc, at = [C(3, channels, 3, padding=1)], channels
        for level, c in enumerate(width):
            for _ in range(blocks):
                enc += [Res(at, c)] + ([Attn(c)] if level == 4 else [])
                at = c
            enc += [Down(c)] if level < 4 else []
        enc += [Res(last, last), Attn(last), Res(last, last), G(32, last, 1e-6), torch.nn.SiLU()]
        enc += [C(last, latent, 3, padding=1), C(latent, 8, 1)]
        dec = [C(8, latent, 1), C(latent, last, 3, padding=1), Res(last, last), Attn(last), Res(last, last)]
        at = last
        for level, c in reversed(list(enumerate(width))):
            for _ in range(blocks + 1):
                dec += [Res(at, c)] + ([Attn(c)] if level == 4 else [])
                at = c
            dec += [torch.nn.Upsample(scale_factor=2), C(c, c, 3, padding=1)] if level > 0 else []
        dec += [G(32, channels, 1e-6), torch.nn.SiLU(), C(channels, 3, 3, padding=1)]
        self.encoder, self.decoder = S(*enc), S(*dec)
        self.codebook = torch.nn.Parameter(F.normalize(torch.rand(codes, 8) * 2 - 1))

    def forward(self, x):
        """The reconstruction, and the quantiser's terms; codes are chosen in float32."""
        z = F.normalize(self.encoder(x).float(), dim=1).permute(0, 2, 3, 1)
        book = F.normalize(self.codebook)
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            ids = torch.argmax(z.reshape(-1, 8) @ book.T, 1)
        e = book[ids].view_as(z)
        terms = F.mse_loss(e, z.detach()) + 0.25 * F.mse_loss(z, e.detach())
        return self.decoder((z + (e - z).detach()).permute(0, 3, 1, 2)), terms

    def loss(self, x):
        y, terms = self(x)
        return F.mse_loss(y, x) + terms


def patch_gan(channels=64):
    """PatchGAN's discriminator, as LlamaGen has it."""
    layers, at = [torch.nn.Conv2d(3, channels, 4, 2, 1), torch.nn.LeakyReLU(0.2)], channels
    for i in (1, 2, 3):
        out = channels << i
        layers += [torch.nn.Conv2d(at, out, 4, 2 if i < 3 else 1, 1, bias=False), torch.nn.BatchNorm2d(out), torch.nn.LeakyReLU(0.2)]
        at = out
    return torch.nn.Sequential(*layers, torch.nn.Conv2d(at, 1, 4, 1, 1))


class GanStep:
    """A step of stage 1: squared error, quantiser, hinge loss of weight 0.5; then the discriminator's half."""

    def __init__(self, a):
        self.device, self.bf16 = a.device, a.bf16
        net = Tokenizer(32, 1, 64, 1024) if a.network == "demo" else Tokenizer()
        self.net, self.judge = (m.to(a.device, memory_format=torch.channels_last) for m in (net, patch_gan()))
        self.x = (torch.rand(a.batch, 3, a.side, a.side) * 2 - 1).to(a.device).contiguous(memory_format=torch.channels_last)
        how = {"lr": 1e-4, "betas": (0.9, 0.95), "weight_decay": 0.05}
        if a.device != "cpu":
            how["fused"] = True
        self.updates = [(m, torch.optim.AdamW(m.parameters(), **how)) for m in (self.net, self.judge)]

    def update(self, which, loss):
        net, opt = self.updates[which]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        opt.step()
        opt.zero_grad(set_to_none=True)

    def autocast(self):
        return torch.autocast(self.device, dtype=torch.bfloat16, enabled=self.bf16)

    def __call__(self):
        self.judge.requires_grad_(False)
        with self.autocast():
            fake, terms = self.net(self.x)
            of_generator = F.mse_loss(fake.float(), self.x) + terms - 0.5 * self.judge(fake).float().mean()
        self.update(0, of_generator)
        self.judge.requires_grad_(True)
        with self.autocast():
            real, unreal = self.judge(self.x).float(), self.judge(fake.detach()).float()
            of_judge = 0.25 * (F.relu(1 - real).mean() + F.relu(1 + unreal).mean())
        self.update(1, of_judge)
        return of_generator.item() + of_judge.item()  # the log's, which wait for the device


# ------------------------------------------------------------------------------------------------ commands


def seconds(run, repeat):
    run()
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def speed(parameters, loss, opt, repeat, units, name):
    def step():
        for t in parameters:
            t.grad = None
        loss().backward()

    whole, update = seconds(step, repeat), seconds(opt.step, repeat)
    print(f"{units / whole:.2f} {name}/s, {1e3 * whole:.1f} ms; with AdamW {units / (whole + update):.2f} {name}/s")


def speed_ar(a):
    p = stage2_new(a.width, a.layers, a.vocab, a.tokens)
    labels, codes = torch.randint(1000, (a.batch,)), torch.randint(a.vocab, (a.batch, a.tokens))
    speed(list(p.values()), lambda: stage2_loss(p, labels, codes, a.bf16), optimizer(p, 1e-4, 0.05), a.repeat,
          a.batch * a.tokens, "tokens")


def speed_vq(a):
    net, x = Tokenizer(), torch.rand(a.batch, 3, a.side, a.side) * 2 - 1
    if a.channels_last:
        net, x = net.to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)
    p = dict(net.named_parameters())
    speed(list(p.values()), lambda: net.loss(x), optimizer(p, 1e-4, 0.0), a.repeat, a.batch, "pictures")


def speed_gan(a):
    torch.backends.cudnn.benchmark = True
    step = GanStep(a)
    for _ in range(3):
        step()
    time_of = seconds(step, a.repeat)
    kind = "bf16" if a.bf16 else "f32"
    print(f"{a.network} with PatchGAN, {a.batch} x {a.side}x{a.side}, {kind}, PyTorch {torch.__version__} on {a.device}: "
          f"{1e3 * time_of:.2f} ms a step, {a.batch / time_of:.1f} pictures/s")


def curve(a):
    p = stage2_of(read_safetensors(os.path.join(a.init, "model.safetensors")))
    codes = torch.from_numpy(np.load(a.codes).astype(np.int64))
    codes = codes.reshape(codes.shape[0], -1)
    labels = torch.from_numpy(np.load(a.labels).astype(np.int64)).flatten()
    dropped = torch.from_numpy(np.load(a.dropped).astype(bool)).flatten() if a.dropped else None
    null = p["backbone.cls_embed.embedding_table.weight"].shape[0] - 1
    opt = optimizer(p, a.lr, 0.0 if a.official_decay else a.decay)
    print("step loss lr grad_norm")
    for step in range(a.steps):
        rate = a.lr * (1 - step / a.steps) if a.schedule == "linear" else a.lr
        for group in opt.param_groups:
            group["lr"] = rate
        order = torch.arange(step * a.batch, (step + 1) * a.batch)
        y = labels[order % len(labels)].clone()
        if dropped is not None:
            y[dropped[order]] = null
        opt.zero_grad(set_to_none=True)
        loss = stage2_loss(p, y, codes[order % len(codes)], a.bf16)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(p.values(), a.clip if a.clip > 0 else math.inf)
        opt.step()
        print(f"{step + 1} {loss.item():.6f} {rate:.6g} {norm.item():.6f}", flush=True)


def main():
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument("--threads", type=int, default=0, help="0: torch's choice")
    top.add_argument("--repeat", type=int, default=5, help="timed steps, of which the median counts")
    top.add_argument("--seed", type=int, default=0)
    commands = top.add_subparsers(dest="command", required=True)
    ar = commands.add_parser("speed-ar")
    for name, value in (("width", 768), ("layers", 2), ("vocab", 16384), ("tokens", 256), ("batch", 4)):
        ar.add_argument("--" + name, type=int, default=value)
    ar.add_argument("--bf16", action="store_true")
    vq = commands.add_parser("speed-vq")
    vq.add_argument("--side", type=int, default=128)
    vq.add_argument("--batch", type=int, default=1)
    vq.add_argument("--channels-last", action="store_true")
    gan = commands.add_parser("speed-gan")
    gan.add_argument("--device", default="cpu")
    gan.add_argument("--network", choices=("VQ-f16", "demo"), default="VQ-f16")
    gan.add_argument("--side", type=int, default=256)
    gan.add_argument("--batch", type=int, default=16)
    gan.add_argument("--bf16", action="store_true")
    c = commands.add_parser("curve")
    for name in ("init", "codes", "labels"):
        c.add_argument("--" + name, required=True)
    c.add_argument("--dropped")
    c.add_argument("--steps", type=int, default=200)
    c.add_argument("--batch", type=int, default=8)
    c.add_argument("--lr", type=float, default=1e-3)
    c.add_argument("--decay", type=float, default=0.05)
    c.add_argument("--official-decay", action="store_true")
    c.add_argument("--clip", type=float, default=1.0)
    c.add_argument("--schedule", choices=("linear", "constant"), default="linear")
    c.add_argument("--bf16", action="store_true")
    a = top.parse_args()
    if a.threads:
        torch.set_num_threads(a.threads)
    torch.manual_seed(a.seed)
    {"speed-ar": speed_ar, "speed-vq": speed_vq, "speed-gan": speed_gan, "curve": curve}[a.command](a)


if __name__ == "__main__":
    main()
