import pytest

from runtime.errors import UsageError
from runtime.launch import Place, find_place

MASTER = {"MASTER_ADDR": "node1", "MASTER_PORT": "29500"}


def environment(text: str) -> dict[str, str]:
    return dict(pair.split("=") for pair in text.split())


@pytest.mark.parametrize(
    ("variables", "place"),
    [
        ("RANK=5 WORLD_SIZE=8 LOCAL_RANK=1", Place(5, 8, 1)),  # torchrun, also inside SLURM
        ("RANK=5 WORLD_SIZE=8 LOCAL_RANK=1 SLURM_PROCID=1 SLURM_NTASKS=2 SLURM_LOCALID=0", Place(5, 8, 1)),
        ("RANK=5 WORLD_SIZE=8 SLURM_PROCID=5 SLURM_NTASKS=8 SLURM_LOCALID=1", Place(5, 8, 1)),
        ("RANK=5 WORLD_SIZE=8 SLURM_LOCALID=1", Place(5, 8, 1)),
        ("RANK=5 WORLD_SIZE=8 OMPI_COMM_WORLD_RANK=5 OMPI_COMM_WORLD_LOCAL_RANK=1 SLURM_LOCALID=0", Place(5, 8, 1)),
        ("RANK=5 WORLD_SIZE=8 PMI_RANK=5 PMI_SIZE=8 MPI_LOCALRANKID=1", Place(5, 8, 1)),
        ("RANK=5 WORLD_SIZE=8 MV2_COMM_WORLD_LOCAL_RANK=1", Place(5, 8, 1)),
        ("RANK=0 WORLD_SIZE=1", Place(0, 1, 0)),
    ],
)
def test_the_place_is_found(variables, place):
    assert find_place(environment(variables) | MASTER) == place


@pytest.mark.parametrize(
    "variables",
    [
        "",
        "MASTER_ADDR=node1 MASTER_PORT=29500",  # set for a launcher that comes later in the script
        "SLURM_JOB_ID=7 SLURM_NTASKS=8",  # the shell of salloc
        "SLURM_PROCID=0 SLURM_NTASKS=1 SLURM_LOCALID=0",  # sbatch
        "SLURM_PROCID=0 SLURM_NTASKS=8 SLURM_STEP_NUM_TASKS=1",  # srun --ntasks=1 in a larger job
        "OMPI_COMM_WORLD_RANK=0 OMPI_COMM_WORLD_SIZE=1",
        *("WORLD_SIZE=1", "LOCAL_RANK=0"),  # left set by a scheduler or an editor
        "RANK=0 WORLD_SIZE=1",
        "RANK=0 WORLD_SIZE=1 SLURM_PROCID=0 SLURM_NTASKS=8",
    ],
)
def test_a_program_may_be_one_process(variables):
    assert find_place(environment(variables)) is None


@pytest.mark.parametrize(
    ("variables", "line"),
    [
        ("RANK=1 WORLD_SIZE=2 MASTER_ADDR=a MASTER_PORT=1", "RANK=1 and WORLD_SIZE=2 without LOCAL_RANK"),
        # started by a script, whose place in SLURM they have all inherited
        ("RANK=1 WORLD_SIZE=2 SLURM_PROCID=0 SLURM_NTASKS=2 SLURM_LOCALID=0", "WORLD_SIZE=2 without LOCAL_RANK"),
        ("RANK=0 WORLD_SIZE=2 SLURM_PROCID=0 SLURM_NTASKS=1 SLURM_LOCALID=0", "WORLD_SIZE=2 without LOCAL_RANK"),
        ("RANK=0", "RANK=0 without WORLD_SIZE"),
        ("WORLD_SIZE=2", "WORLD_SIZE=2 without RANK"),
        ("LOCAL_RANK=1", "LOCAL_RANK=1 without RANK"),
        ("RANK=2 WORLD_SIZE=2 LOCAL_RANK=0", "RANK=2 must be less than WORLD_SIZE=2"),
        ("RANK=a WORLD_SIZE=2 LOCAL_RANK=0", "RANK=a must be a whole number from 0 on"),
        ("RANK=-1 WORLD_SIZE=2 LOCAL_RANK=0", "RANK=-1 must be"),
        ("RANK=0 WORLD_SIZE=0 LOCAL_RANK=0", "WORLD_SIZE=0 must be a whole number from 1 on"),
        ("RANK=0 WORLD_SIZE=2 LOCAL_RANK=0.5", "LOCAL_RANK=0.5 must be"),
        ("RANK=0 WORLD_SIZE=2 LOCAL_RANK=0 MASTER_PORT=1", "WORLD_SIZE=2 without MASTER_ADDR"),
        ("RANK=0 WORLD_SIZE=2 LOCAL_RANK=0 MASTER_ADDR=a", "WORLD_SIZE=2 without MASTER_PORT"),
        ("RANK=0 WORLD_SIZE=2 LOCAL_RANK=0 MASTER_ADDR=a MASTER_PORT=70000", "MASTER_PORT=70000 must be .* to 65535"),
        ("RANK=0 WORLD_SIZE=1 MASTER_ADDR=a", "without MASTER_PORT"),
        ("SLURM_PROCID=0 SLURM_NTASKS=8", r"SLURM has 8 processes here \(SLURM_NTASKS\).*torchrun"),
        ("SLURM_PROCID=3 SLURM_NTASKS=8 SLURM_STEP_NUM_TASKS=4", "SLURM has 4 processes here"),
        ("OMPI_COMM_WORLD_RANK=1 OMPI_COMM_WORLD_SIZE=2", "Open MPI has 2 processes here"),
        ("PMI_RANK=0 PMI_SIZE=2", "MPI has 2 processes here"),
    ],
)
def test_processes_that_cannot_find_each_other_are_refused(variables, line):
    with pytest.raises(UsageError, match=line) as raised:
        find_place(environment(variables))
    assert "\n" not in str(raised.value)
