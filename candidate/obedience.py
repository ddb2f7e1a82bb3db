import sys, json, functools, pickle, os, time
import numpy as np, jax
import musae_jax.bench.obedience as ob, musae_jax.bench.samples as sa
from musae_jax import load_musicgen
from musae_jax.models.generate import generate
model, n = sys.argv[1], int(sys.argv[2]); settings=json.loads(sys.argv[3]); seed=int(sys.argv[4]) if len(sys.argv)>4 else 0
mg=load_musicgen(model)
rate,size=mg.config.sampling_rate,mg.config.audio.codebook_size
cache=os.path.expanduser('WORK/plan/judge.pkl')
if os.path.exists(cache): taught,ta=pickle.load(open(cache,'rb'))
else:
    taught,audio=ob._rendered(ob.JUDGE_SEED,1200,rate); ta=(ob.hear_clips(audio,rate),audio); pickle.dump((taught,ta),open(cache,'wb'))
hear,audio=ta
ob.QUESTIONS={k:q for k,q in ob.QUESTIONS.items() if q.hears}
codes=ob.in_batches(lambda x: ob.encode_audio(mg.config,mg.params,x),audio[:64]); read=None
ob.QUESTIONS={k:v for k,v in ob.QUESTIONS.items() if v.hears and k in('drums','tempo','instrument','key','level')}
judges={k:ob._fit(q,taught,hear[:,ob.columns(*q.hears)] if q.hears else read) for k,q in ob.QUESTIONS.items()}
held=codes[:64]
from musae_jax.pocket.corpus import HELD_OUT_SEED, composition
from musae_jax.compose.render import render
hc=np.stack([render(composition(HELD_OUT_SEED,i,10.0).score,rate) for i in range(64)]); held=ob.in_batches(lambda x: ob.encode_audio(mg.config,mg.params,x),hc)
for s in settings:
    t=time.time()
    g=dict(s); guid=g.pop('guidance_scale',3.0)
    def gen(config,params,text,key,**kw):
        if text is not None: kw['guidance_scale']=guid
        return generate(config,params,text,key,**{**kw,**g})
    ob.generate=gen; sa.generate=gen
    asked,au,co=ob._play(mg,n,seed); np.save('gen-%s.npy'%abs(hash(json.dumps(s))),co)
    h,r=ob.hear_clips(au,rate),None
    out={}
    for k,q in ob.QUESTIONS.items():
        right=ob._right(q,judges[k],asked,h[:,ob.columns(*q.hears)] if q.hears else r)
        out[k]=round(float(right.mean()),3)
        if k=='drums':
            has=np.array([a.drums is not None for a in asked]); out['missed']=round(float(1-right[has].mean()),3); out['false']=round(float(1-right[~has].mean()),3)
    if True:
        m=sa.measure_samples(mg,held,jax.random.key(seed))
        out['samples']={k:round(v['ratio'],3) for k,v in m.items()}
    print(json.dumps(s),json.dumps(out),round(time.time()-t),flush=True)
