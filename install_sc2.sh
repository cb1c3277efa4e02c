#!/usr/bin/env bash
# Installs StarCraft II 4.10 for Linux (Blizzard's package for machine learning) and SMAC's maps into $SC2PATH, default
# ~/StarCraftII. What is there already is left alone, an interrupted download is continued. Nothing outside of that
# folder is touched, no settings are changed.
set -euo pipefail

usage() {
    cat <<'EOF'
Usage: bash install_sc2.sh [--accept-licence] [--maps-only]

  --accept-licence  you agree to Blizzard's AI and Machine Learning License, see
                    http://blzdistsc2-a.akamaihd.net/AI_AND_MACHINE_LEARNING_LICENSE.html
                    Without this option the script asks.
  --maps-only       only SMAC's maps, e.g. for a game that is installed already

Environment:
  SC2PATH        where the game is or is to be (default ~/StarCraftII)
  SC2_URL        where the game's package comes from
  SC2_MAPS_URL   where SMAC's maps come from

The Python packages are installed with: pip install -r requirements-sc2.txt
EOF
}

GAME_URL=${SC2_URL:-http://blzdistsc2-a.akamaihd.net/Linux/SC2.4.10.zip}
MAPS_URL=${SC2_MAPS_URL:-https://github.com/oxwhirl/smac/releases/download/v0.1-beta1/SMAC_Maps.zip}
LICENCE=http://blzdistsc2-a.akamaihd.net/AI_AND_MACHINE_LEARNING_LICENSE.html
# Typing this is how the package's licence is accepted.
PHRASE=iagreetotheeula
GAME=${SC2PATH:-$HOME/StarCraftII}
BINARY=$GAME/Versions/Base75689/SC2_x64
MAPS_FOLDER=$GAME/Maps/SMAC_Maps
DOWNLOADS=$GAME/.downloads
MAPS=(
    3m 8m 25m 5m_vs_6m 8m_vs_9m 10m_vs_11m 27m_vs_30m MMM MMM2 2s3z 3s5z 3s5z_vs_3s6z 3s_vs_3z 3s_vs_4z 3s_vs_5z
    1c3s5z 2m_vs_1z corridor 6h_vs_8z 2s_vs_1sc so_many_baneling bane_vs_bane 2c_vs_64zg
)

say() { printf '%s\n' "$*"; }
fail() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

# download URL FILE: FILE appears only when it is complete.
download() {
    local url=$1 file=$2
    [[ -f $file ]] && return
    say "downloading $url"
    if command -v curl >/dev/null; then
        curl --fail --location --no-progress-meter --continue-at - --output "$file.part" "$url" ||
            fail "the download of $url failed; run this script again to continue it"
    else
        wget --no-verbose --continue --output-document "$file.part" "$url" ||
            fail "the download of $url failed; run this script again to continue it"
    fi
    mv "$file.part" "$file"
}

# unpack FILE FOLDER [PHRASE]: into an empty FOLDER; a damaged FILE is removed, so that the next run loads it anew.
unpack() {
    local file=$1 folder=$2 phrase=${3:-}
    rm -rf "$folder"
    mkdir -p "$folder"
    if ! unzip -q -P "$phrase" -d "$folder" "$file"; then
        rm -rf "$folder" "$file"
        fail "$(basename "$file") cannot be unpacked (a damaged download, or no space on the disk); run this script again"
    fi
}

accepted() {
    [[ $accept == yes ]] && return
    [[ -t 0 ]] || return 1
    local answer
    say "StarCraft II may be used under Blizzard's AI and Machine Learning License: $LICENCE"
    read -r -p "Do you accept it? [yes/no] " answer
    [[ $answer == yes ]]
}

install_game() {
    if [[ -x $BINARY ]]; then
        say "StarCraft II 4.10 is in $GAME already"
        return
    fi
    accepted || fail "nothing installed: Blizzard's licence ($LICENCE) must be accepted, with --accept-licence or by" \
        "answering yes"
    mkdir -p "$DOWNLOADS"
    download "$GAME_URL" "$DOWNLOADS/game.zip"
    say "unpacking into $GAME"
    unpack "$DOWNLOADS/game.zip" "$DOWNLOADS/game" "$PHRASE"
    [[ -f $DOWNLOADS/game/StarCraftII/Versions/Base75689/SC2_x64 ]] ||
        fail "$GAME_URL is not the package of version 4.10: it has no Versions/Base75689/SC2_x64"
    chmod +x "$DOWNLOADS/game/StarCraftII/Versions/Base75689/SC2_x64"
    # The program comes last: when it is there, everything is.
    local part
    for part in "$DOWNLOADS/game/StarCraftII"/*; do
        [[ $(basename "$part") == Versions ]] || move_into "$part" "$GAME"
    done
    move_into "$DOWNLOADS/game/StarCraftII/Versions" "$GAME"
    rm -rf "$DOWNLOADS/game" "$DOWNLOADS/game.zip"
}

# move_into PATH FOLDER: folders are merged, files that exist are replaced.
move_into() {
    local source=$1 target
    target=$2/$(basename "$source")
    if [[ -d $source && -d $target ]]; then
        local part
        for part in "$source"/*; do
            [[ -e $part ]] && move_into "$part" "$target"
        done
    else
        mv -f "$source" "$target"
    fi
    return 0
}

# Whether a file is a map (an MPQ archive), not an error page saved under its name.
is_map() { [[ -f $1 && $(head -c 3 "$1" | tr -d '\0') == MPQ ]]; }

missing_maps() {
    local name
    for name in "${MAPS[@]}"; do
        is_map "$MAPS_FOLDER/$name.SC2Map" || printf '%s ' "$name"
    done
}

install_maps() {
    if [[ -z $(missing_maps) ]]; then
        say "SMAC's ${#MAPS[@]} maps are in $MAPS_FOLDER already"
        return
    fi
    mkdir -p "$DOWNLOADS" "$MAPS_FOLDER"
    download "$MAPS_URL" "$DOWNLOADS/maps.zip"
    unpack "$DOWNLOADS/maps.zip" "$DOWNLOADS/maps"
    find "$DOWNLOADS/maps" -name '*.SC2Map' -not -path '*/__MACOSX/*' -exec mv -f {} "$MAPS_FOLDER/" \;
    rm -rf "$DOWNLOADS/maps" "$DOWNLOADS/maps.zip"
    local missing
    missing=$(missing_maps)
    [[ -z $missing ]] || fail "$MAPS_URL lacks maps, or they are damaged: ${missing% }"
    say "SMAC's ${#MAPS[@]} maps are in $MAPS_FOLDER"
}

accept=no
only=
while (($#)); do
    case $1 in
    --accept-licence | --accept-license) accept=yes ;;
    --maps-only) only=maps ;;
    -h | --help)
        usage
        exit 0
        ;;
    *)
        usage >&2
        fail "unknown option '$1'"
        ;;
    esac
    shift
done

[[ $(uname -s) == Linux || -n $only ]] || fail "Blizzard's package is for Linux; elsewhere install the ordinary game," \
    "set SC2PATH, and use --maps-only"
command -v unzip >/dev/null || fail "unzip is not installed (apt-get install unzip)"
command -v curl >/dev/null || command -v wget >/dev/null || fail "neither curl nor wget is installed"
mkdir -p "$GAME" 2>/dev/null && [[ -w $GAME ]] || fail "cannot write to $GAME: set SC2PATH to another folder"

[[ $only == maps ]] || install_game
install_maps
rmdir "$DOWNLOADS" 2>/dev/null || true
say "ready: python src/main.py --config=qmix --env-config=sc2 with env_args.map_name=3m"
[[ $GAME == "$HOME/StarCraftII" ]] || say "the game is not in its usual place: export SC2PATH=$GAME"
