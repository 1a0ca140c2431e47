"""Constants of the published forward process (paper, section 3.1). Needs no PyTorch."""

# Number of levels T.
TIMESTEPS = 80
# Standard deviation v of the finest noise of one DVF, as a fraction of the control grid's side.
VELOCITY_SCALE = 4e-5
# Nodes of the control grid along each axis.
CONTROL_SIZE = 64
# Standard deviation of the noise that is added to the DVF, as a fraction of VELOCITY_SCALE.
NOISE_RATIO = 0.08


def noise_sides(control_size: int) -> list[int]:
    """List the numbers of nodes along a side of grids that become a control grid when they are doubled repeatedly."""
    sides = [control_size]
    while sides[-1] > 0 and sides[-1] % 2 == 0:
        sides.append(sides[-1] // 2)
    return sides
