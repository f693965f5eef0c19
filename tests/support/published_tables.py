"""Small tables of the shape in which image sets are published. Every cell is made up."""

import json
from pathlib import Path

LABELS = ("Atelectasis", "Cardiomegaly", "Edema", "Support Devices")
READERS = ("R1", "R2", "R3")


def write(path: Path, *rows: str) -> Path:
    """Write lines to a file, with its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(rows) + "\n")
    return path


def touch(folder: Path, *names: str) -> None:
    """Make empty files, with their folders."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def mimic(folder: Path, *, kind: str = "chexpert", split: bool = True) -> Path:
    """Four images of three studies of two patients; the last study has no labels."""
    index = write(
        folder / f"mimic-cxr-2.0.0-{kind}.csv",
        "subject_id,study_id,Atelectasis,Cardiomegaly,No Finding,Support Devices",
        "10000001,50000001,1.0,,,",
        "10000002,50000002,,-1.0,1.0,",
    )
    write(
        folder / "mimic-cxr-2.0.0-metadata.csv",
        "dicom_id,subject_id,study_id,PerformedProcedureStepDescription,ViewPosition,Rows,Columns",
        "aa-1,10000001,50000001,CHEST (PA AND LAT),PA,3056,2544",
        "aa-2,10000001,50000001,CHEST (PA AND LAT),LATERAL,3056,2544",
        "bb-1,10000002,50000002,CHEST (PORTABLE AP),AP,3056,2544",
        "cc-1,11000003,50000003,CHEST (PORTABLE AP),AP,3056,2544",
    )
    if split:
        write(
            folder / "mimic-cxr-2.0.0-split.csv",
            "dicom_id,study_id,subject_id,split",
            "aa-1,50000001,10000001,train",
            "aa-2,50000001,10000001,train",
            "bb-1,50000002,10000002,test",
            "cc-1,50000003,11000003,validate",
        )
    return index


def chexpert_plus(folder: Path) -> Path:
    """Labels in JSON Lines, with the table of demographics in the folder above."""
    paths = ("train/patient00001/study1/view1_frontal.jpg", "valid/patient00002/study1/view1_lateral.jpg")
    records = (
        {"path_to_image": paths[0], "Atelectasis": 1.0, "Edema": None, "No Finding": None},
        {"path_to_image": paths[1], "Atelectasis": None, "Edema": -1.0, "No Finding": 1.0},
    )
    write(
        folder / "df_chexpert_plus_240401.csv",
        "path_to_image,path_to_dcm,frontal_lateral,ap_pa,deid_patient_id,report,age,sex,split",
        f'{paths[0]},x.dcm,Frontal,AP,patient00001,"NARRATIVE: one, two",68,Female,train',
        f"{paths[1]},y.dcm,Lateral,,patient00002,three,40,Male,valid",
    )
    return write(folder / "chexbert_labels" / "impression_fixed.json", *map(json.dumps, records))


def vindr(folder: Path) -> Path:
    """Three images read by three readers. Two, one and none of them see Nodule/Mass."""
    seen = {"img1": (1, 1, 0), "img2": (0, 1, 0), "img3": (0, 0, 0)}
    rows = [
        f"{image},{reader},{1 if reader == 'R2' else 0},{nodule},{int(not nodule and reader != 'R2')}"
        for image, nodules in seen.items()
        for reader, nodule in zip(READERS, nodules, strict=True)
    ]
    return write(folder / "image_labels_train.csv", "image_id,rad_id,Cardiomegaly,Nodule/Mass,No finding", *rows)


def vindr_boxes(folder: Path) -> Path:
    """The boxes of three readers: R1 draws two boxes of Nodule/Mass on the first image, which counts once."""
    return write(
        folder / "train.csv",
        "image_id,class_name,class_id,rad_id,x_min,y_min,x_max,y_max",
        "img1,Nodule/Mass,8,R1,1,1,9,9",
        "img1,Nodule/Mass,8,R1,20,20,30,30",
        "img1,No finding,14,R2,,,,",
        "img1,No finding,14,R3,,,,",
        "img2,Cardiomegaly,3,R1,1,1,9,9",
        "img2,Cardiomegaly,3,R2,1,1,9,9",
        "img2,No finding,14,R3,,,,",
        *(f"img3,No finding,14,{reader},,,," for reader in READERS),
    )


def rsna(folder: Path) -> Path:
    """Two boxes on one image."""
    return write(
        folder / "stage_2_train_labels.csv",
        "patientId,x,y,width,height,Target",
        "aa,264.0,152.0,213.0,379.0,1",
        "aa,562.0,152.0,256.0,453.0,1",
        "bb,,,,,0",
    )


def siim(folder: Path) -> Path:
    """The header has a space before its second name, as published."""
    return write(
        folder / "train-rle.csv", "ImageId, EncodedPixels", "1.2.3,-1", "1.2.4,557374 2 1015 8", "1.2.4,514175 10 1008"
    )


def brax(folder: Path) -> Path:
    """Integer columns that are no labels (Rows, Manufacturer), and an age group."""
    return write(
        folder / "master_spreadsheet_update.csv",
        "DicomPath,PngPath,PatientID,PatientSex,PatientAge,AccessionNumber,StudyDate,No Finding,Cardiomegaly,Edema,"
        "ViewPosition,Rows,Columns,Manufacturer",
        "a.dcm,images/id_1/Study_1/Series_1/image-1.png,id_1,F,85 or more,1,20100101,,1.0,-1.0,PA,1,1,1",
        "b.dcm,images/id_2/Study_1/Series_1/image-1.png,id_2,M,40,2,20100101,1.0,,,AP,0,0,0",
    )


def covid(folder: Path) -> Path:
    """Two radiographs and a CT of one patient, and a radiograph without a known finding."""
    return write(
        folder / "metadata.csv",
        "patientid,offset,sex,age,finding,view,modality,location,folder,filename",
        "2,0,M,65,Pneumonia/Viral/COVID-19,PA,X-ray,Somewhere,images,a.jpg",
        "2,3,M,65,Pneumonia/Viral/COVID-19,Axial,CT,Somewhere,volumes,a.nii.gz",
        "4,0,F,40,No Finding,AP,X-ray,Elsewhere,images,b.jpg",
        "5,0,F,41,todo,AP,X-ray,Elsewhere,images,c.jpg",
    )


def shenzhen(folder: Path) -> Path:
    """A folder of clinical readings, in the words of both hospitals."""
    readings = folder / "ClinicalReadings"
    write(readings / "CHNCXR_0001_0.txt", "male 45yrs", "normal")
    write(readings / "CHNCXR_0002_1.txt", "female 30yrs", "bilateral PTB")
    write(readings / "MCUCXR_0003_1.txt", "Patient's Sex: F", "Patient's Age: 027Y", "infiltrate")
    return readings
