from grpc_reflection.v1alpha import reflection

from signer.api.server import METHOD_ROLES, ROLES, _options
from signer.config.models import LimitsConfig
from signer.model import Role
from signer.v1 import control_pb2, evidence_pb2, keys_pb2, operations_pb2, signing_pb2


def test_every_service_says_who_may_call_it() -> None:
    modules = (signing_pb2, keys_pb2, operations_pb2, evidence_pb2, control_pb2)
    services = {
        service.full_name: name
        for module in modules
        for name, service in module.DESCRIPTOR.services_by_name.items()
    }
    assert services.keys() == ROLES.keys() - {reflection.SERVICE_NAME}
    assert {services[name]: roles for name, roles in ROLES.items() if name in services} == {
        "SigningService": {Role.ISSUER},
        "KeyService": set(Role),
        "OperationService": {Role.OFFICER},
        "EvidenceService": {Role.AUDITOR},
        "ControlService": {Role.OPERATOR},
    }


def test_auditors_read_what_officers_do_and_change_nothing() -> None:
    methods = operations_pb2.DESCRIPTOR.services_by_name["OperationService"].methods
    reading = {each.name for each in methods if each.name.startswith(("Get", "List"))}
    assert {name.rpartition("/")[2] for name in METHOD_ROLES} == reading
    assert set(METHOD_ROLES.values()) == {frozenset({Role.OFFICER, Role.AUDITOR})}


def test_limits_are_stated_one_by_one() -> None:
    given = {
        "message_bytes": 70_000,
        "streams_per_connection": 5,
        "connection_age_seconds": 7,
        "connections": 9,
    }
    limits = LimitsConfig.model_validate(given)
    options = dict(_options(limits))
    assert len(options) == len(_options(limits))
    assert options["grpc.so_reuseport"] == 0
    assert options["grpc.max_receive_message_length"] == 70_000
    assert options["grpc.max_allowed_incoming_connections"] == 9
    assert options["grpc.max_concurrent_streams"] == 5
    assert options["grpc.max_connection_age_ms"] == 7000
