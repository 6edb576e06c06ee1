package stream

import (
	"reflect"
	"testing"
)

// TestTrafficSum: no counter is forgotten when domains are added up.
func TestTrafficSum(t *testing.T) {
	var one, got Traffic
	next := int64(0)
	var each func(v reflect.Value, f func(reflect.Value))
	each = func(v reflect.Value, f func(reflect.Value)) {
		if v.Kind() != reflect.Struct {
			f(v)
			return
		}
		for i := range v.NumField() {
			each(v.Field(i), f)
		}
	}
	each(reflect.ValueOf(&one).Elem(), func(v reflect.Value) {
		next++
		v.Set(reflect.ValueOf(next).Convert(v.Type()))
	})
	got.sum(&one)
	if got != one {
		t.Errorf("got  %+v\nwant %+v", got, one)
	}
	got.sum(&one)
	each(reflect.ValueOf(&got).Elem(), func(v reflect.Value) {
		if v.Convert(reflect.TypeFor[int64]()).Int()%2 != 0 {
			t.Errorf("added twice: %+v", got)
		}
	})
}
