"""What phones say of their condition, as Android 10 to 15 print it."""

from __future__ import annotations

from device_farm.connectors.adb.condition import temperatures

ANDROID_15 = """IsStatusOverride: false
Thermal Status: 0
Cached temperatures:
	Temperature{mValue=45.0, mType=3, mName=skin, mStatus=0}
	Temperature{mValue=30.0, mType=2, mName=old, mStatus=0}
HAL Ready: true
HAL connection:
	ThermalHAL AIDL 2  connected: yes
Current temperatures from HAL:
	Temperature{mValue=35.7, mType=3, mName=skin, mStatus=0}
	Temperature{mValue=-2.5, mType=-1, mName=outside, mStatus=0}
	Temperature{mValue=4100.0, mType=6, mName=vbat, mStatus=0}
	Temperature{mValue=812.0, mType=7, mName=ibat, mStatus=0}
	Temperature{mValue=97.0, mType=8, mName=soc, mStatus=0}
	Temperature{mValue=41.25, mType=9, mName=TPU, mStatus=0}
Current cooling devices from HAL:
	CoolingDevice{mValue=0, mType=2, mName=thermal-cpufreq-0}
Temperature static thresholds from HAL:
	TemperatureThreshold{mType=3, mName=skin, mHotThrottlingThresholds=[NaN, 39.0, 43.0]}
"""


def test_current_temperatures_are_told_and_only_temperatures() -> None:
    assert temperatures(ANDROID_15) == {"skin": 35.7, "outside": -2.5, "TPU": 41.25}


def test_without_a_hal_the_cached_ones_are_told() -> None:
    cached = ANDROID_15.partition("HAL Ready")[0]
    assert temperatures(f"{cached}HAL Ready: false\n") == {"skin": 45.0, "old": 30.0}
    assert temperatures("Can't find service: thermalservice") == {}
