"""How notebooks are executed headless: kernels that start at once, and few writes.

Kernels are forked from the server of `emilib.workers`, so they start without importing. The
engine of papermill writes a notebook when it is finished, not twice a cell.
"""

import os
import subprocess
from importlib.metadata import EntryPoint

from jupyter_client.provisioning import KernelProvisionerFactory, LocalProvisioner
from papermill.engines import NBClientEngine, papermill_engines
from papermill.iorw import write_ipynb

from emilib import workers as processes

NAME = "emilib-forked"
ENGINE = "emilib-once"


def use_forked_kernels() -> None:
    """Let every kernel that this process starts from now on be a `ForkedKernel`."""
    factory = KernelProvisionerFactory.instance()
    place = f"{__name__}:{ForkedKernel.__qualname__}"
    factory.provisioners[NAME] = EntryPoint(NAME, place, factory.GROUP_NAME)
    factory.default_provisioner_name = NAME


class WritesOnce(NBClientEngine):
    """Papermill's engine; what a dead kernel leaves is written to the path `unfinished`."""

    @classmethod
    def execute_managed_notebook(cls, nb_man, kernel_name, unfinished=None, **options):
        """Execute the notebook of `nb_man`; errors as the base class."""
        try:
            return super().execute_managed_notebook(nb_man, kernel_name, **options)
        except Exception:
            write_ipynb(nb_man.nb, str(unfinished))
            raise


papermill_engines.register(ENGINE, WritesOnce)


class ForkedKernel(LocalProvisioner):
    """Starts ipykernel in a forked process; any other kernel as Jupyter does."""

    async def launch_kernel(self, cmd, **kwargs):
        """Connection info of the kernel started by `cmd`, as the base class."""
        if list(cmd[1:3]) != ["-m", "ipykernel_launcher"]:
            return await super().launch_kernel(cmd, **kwargs)
        self.process = _Forked(cmd, kwargs.get("cwd"), kwargs["env"])
        # A session, and so a process group, of its own: interrupting it interrupts nothing else.
        self.pid = self.pgid = self.process.pid
        return self.connection_info


class _Forked:
    """What Jupyter uses of a `subprocess.Popen`."""

    stdin = stdout = stderr = None

    def __init__(self, cmd, cwd, env):
        self._process = processes.context().Process(
            target=processes.become_kernel, args=(list(cmd), cwd, dict(env))
        )
        self._process.start()
        self.pid = self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("ipykernel_launcher", timeout)
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self._process.kill()

    def terminate(self) -> None:
        self._process.terminate()
