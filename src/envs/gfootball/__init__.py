"""Google Research Football (Kurach et al. 2020): `--env-config=gfootball`. install_gfootball.sh
builds the package.
"""
