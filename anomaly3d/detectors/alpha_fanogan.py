"""f-AnoGAN whose phase 1 is the 3D alpha-WGAN-GP of Kwon et al. 2019; the phase ``alpha_gan`` trains it."""

from anomaly3d.detectors.fanogan import FAnoGAN


class AlphaFAnoGAN(FAnoGAN):
    """As f-AnoGAN: phase 1 has trained its encoder too, and phases 2 and 3 go on from there."""

    title = "3D f-AnoGAN on an alpha-GAN"
