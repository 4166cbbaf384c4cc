"""A real appliance from nothing, for ``signer init`` and ``signer serve``."""

from pathlib import Path

from signer.files import SECRET, replace_file
from signer.tools.dev import key_plan as plan
from signer.tools.dev import pki, softhsm, texts
from tests.commands import Done, signer
from tests.ports import free_ports

KEY = "facilities/clinic/keys/records"
POLICY = """
roles:
  auditor: ["{auditor}"]
  operator: ["{operator}"]
groups: {{}}
profiles:
  records: {{formats: [JWS, MESSAGE], algorithms: [ES256], max_batch_items: 10}}
facilities:
  clinic: {{profile: records, clients: ["{issuer}"]}}
"""


class Place:
    """The folder of an appliance that nobody has initialised yet."""

    def __init__(self, folder: Path) -> None:
        self.dir = folder
        for name in ("token", "pki", "state", "policy"):
            (folder / name).mkdir(mode=0o700)
        replace_file(folder / "softhsm2.conf", texts.SOFTHSM_CONF.format(tokens=folder / "token"))
        replace_file(folder / "pin", "4711-4711\n", SECRET)
        module = softhsm.find_module()
        conf = folder / "softhsm2.conf"
        serial = softhsm.init_token(module, conf, "4711-4711", "0815-0815")
        port, metrics = free_ports()
        self.config = folder / "signer.yaml"
        text = texts.CONFIGURATION.format(
            port=port,
            metrics_port=metrics,
            label=softhsm.LABEL,
            serial=serial,
            module=module,
            workers=1,
        )
        replace_file(self.config, text)
        pki.server(folder / "pki", pki.authority(folder / "pki", "ca", "servers"))
        clients = pki.authority(folder / "pki", "client-ca", "clients")
        for name in plan.CLIENTS:
            pki.client(folder / "pki", clients, name, plan.principal(name))
        self.put_policy(
            POLICY.format(**{n: plan.principal(n) for n in plan.CLIENTS if "-" not in n})
        )
        self.dev = {
            "address": f"127.0.0.1:{port}",
            "server_name": pki.SERVER_NAME,
            "ca": str(folder / "pki/ca.pem"),
            "clients": {
                name: {"cert": str(self.certificate(name)), "key": str(folder / f"pki/{name}.key")}
                for name in plan.CLIENTS
            },
        }

    def certificate(self, name: str) -> Path:
        return self.dir / f"pki/{name}.pem"

    def put_policy(self, text: str) -> None:
        replace_file(self.dir / "policy/policy.yaml", text)

    @property
    def policy(self) -> str:
        return (self.dir / "policy/policy.yaml").read_text()

    def signer(self, *arguments: object) -> Done:
        return signer(*arguments, "--config", self.config)

    def init(self, *names: str) -> Done:
        options = [word for name in names for word in ("--officer", self.certificate(name))]
        return self.signer("init", *options)
