"""Texts of several scripts and lengths that the checks are made with."""

from __future__ import annotations

from typing import Final

QUERY: Final = "Where does the river flow into the sea?"
OTHER_TASK: Final = "Given a claim, retrieve documents that support or refute the claim"
SCRIPTS: Final = 6
TEXTS: Final = (
    "The river reaches the sea near the old harbour, where the pilots live.",
    "Der Fluss mündet bei der alten Werft ins Meer; Schiffe warten dort auf die Flut.",
    "Река впадает в море возле старой гавани.",
    "يصب النهر في البحر قرب الميناء القديم.",
    "नदी पुराने बंदरगाह के पास समुद्र में मिलती है।",
    "这条河在老港口附近流入大海。",
    "강은 오래된 항구 근처에서 바다로 흘러듭니다.",
    "Sand, gravel and water. " * 24,
)
