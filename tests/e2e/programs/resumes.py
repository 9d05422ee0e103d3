"""A network that learns two spirals, and goes on from its last checkpoint: model, optimizer, order of the data."""

import os
import sys
import time

import torch
from safetensors.torch import save_file

source, state, pause_s = sys.argv[1], sys.argv[2], float(sys.argv[3])
torch.manual_seed(7)
torch.use_deterministic_algorithms(True)
torch.set_num_threads(1)
points, colours = torch.load(f"{source}/spirals.pt")
layers = torch.nn.Linear(2, 64), torch.nn.Tanh(), torch.nn.Dropout(0.1), torch.nn.Linear(64, 64), torch.nn.Tanh()
net = torch.nn.Sequential(*layers, torch.nn.Linear(64, 2))
optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)
epoch = 0
if os.path.exists(f"{state}/checkpoint.pt"):
    found = torch.load(f"{state}/checkpoint.pt")
    epoch = found["epoch"]
    torch.set_rng_state(found["chance"])
    for part, name in ((net, "net"), (optimizer, "optimizer"), (schedule, "schedule")):
        part.load_state_dict(found[name])
print("from", epoch, flush=True)
while epoch < 20:
    for batch in torch.randperm(len(points)).split(50):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(points[batch]), colours[batch]).backward()
        optimizer.step()
    schedule.step()
    epoch += 1
    parts = {"net": net.state_dict(), "optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}
    torch.save({"epoch": epoch, "chance": torch.get_rng_state(), **parts}, f"{state}/checkpoint.pt.new")
    os.replace(f"{state}/checkpoint.pt.new", f"{state}/checkpoint.pt")
    time.sleep(pause_s)
with torch.no_grad():
    right = int((net.eval()(points).argmax(1) == colours).sum())
print(f"{right} of {len(points)} right")
save_file(net.state_dict(), f"{state}/net.safetensors")
