"""Training on two processes, each with its own device, as on two hosts: the same loss as on one."""

import json
import os
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxconvt

PROCESSES, STEPS, SECONDS = 2, 3, 120


def decoder(weights, x):
    """From 4x4 to 16x16, by two transposed convolutions that know nothing of devices."""
    for w in weights:
        x = jnp.tanh(lax.conv_transpose(x, w, (2, 2), "SAME"))
    return x


@jax.jit
def train(weights, x, y):
    """One step of gradient descent."""
    loss, gradients = jax.value_and_grad(lambda ws: jnp.mean((decoder(ws, x) - y) ** 2))(weights)
    return loss, jax.tree.map(lambda w, g: w - 0.5 * g, weights, gradients)


def losses():
    """Those of a short training run, the batch divided among all devices of all processes."""
    rng = np.random.default_rng(0)
    weights = [0.2 * rng.standard_normal(s, np.float32) for s in ((4, 4, 8, 16), (3, 3, 16, 3))]
    x = rng.standard_normal((8, 4, 4, 8), np.float32)
    y = rng.uniform(-1, 1, (8, 16, 16, 3)).astype(np.float32)

    mesh = Mesh(np.array(jax.devices()), ("batch",))
    divided, everywhere = NamedSharding(mesh, P("batch")), NamedSharding(mesh, P())
    mine = slice(
        len(x) // jax.process_count() * jax.process_index(),
        len(x) // jax.process_count() * (jax.process_index() + 1),
    )
    x, y = (jax.make_array_from_process_local_data(divided, a[mine]) for a in (x, y))
    weights = jax.tree.map(lambda w: jax.make_array_from_process_local_data(everywhere, w), weights)
    result = []
    with jaxconvt.installed():
        for _ in range(STEPS):
            loss, weights = train(weights, x, y)
            result.append(float(loss))
    return result


def initialize(index, address):
    """Make this process one of all, before it uses a device."""
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(address, PROCESSES, int(index), initialization_timeout=SECONDS // 2)


def worker(index, address):
    initialize(index, address)
    found = losses()
    print(json.dumps([jax.process_count(), jax.device_count(), found]))
    jax.distributed.shutdown()


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def run_all(module, *arguments, devices=1, seconds=SECONDS):
    """Return what each process prints, in order; none is left behind.

    Each runs a module with these arguments, and those of `initialize`, on so many devices.
    """
    address = f"127.0.0.1:{free_port()}"
    flags = f"--xla_force_host_platform_device_count={devices}"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    children = [
        subprocess.Popen(
            [sys.executable, "-m", module, *arguments, str(index), address],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(PROCESSES)
    ]
    try:
        outputs = [child.communicate(timeout=seconds) for child in children]
    finally:
        for child in children:
            child.kill()
            child.wait()
    for child, (_, errors) in zip(children, outputs, strict=True):
        if child.returncode:
            raise AssertionError(f"exit status {child.returncode}:\n{errors}")
    return [out for out, _ in outputs]


class DistributedTest(absltest.TestCase):
    def test_two_processes(self):
        alone = losses()
        self.assertLess(alone[-1], alone[0])
        for output in run_all("tests.test_distributed"):
            processes, devices, found = json.loads(output.splitlines()[-1])
            self.assertEqual((processes, devices), (PROCESSES, PROCESSES))
            np.testing.assert_allclose(found, alone, rtol=1e-5)


if __name__ == "__main__":
    worker(*sys.argv[1:])
